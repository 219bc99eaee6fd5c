"""The benchmark on the demo model: figures that agree with each other and with the folder. No time is asserted."""

import functools
import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
from conftest import GOLDEN, TINY_PYTHON, run_cli

import neo_tf
from neo_tf.cli.benchmark_plot import draw_figures
from neo_tf.evaluation.machine import memory_bandwidth
from neo_tf.evaluation.measuring import STEPS
from neo_tf.evaluation.speed import Settings, benchmark
from neo_tf.evaluation.traffic import bytes_per_token
from neo_tf.runtime.device.kv_cache import KVCache
from neo_tf.runtime.device.session import Session

N_CTX = 512  # of the demo model
PARTS = ("imports", "load", "generate")
MAGIC = {".png": b"\x89PNG\r\n\x1a\n", ".svg": b"<?xml"}


@pytest.fixture(scope="module", autouse=True)
def small_buffer():
    """What the bandwidth is measured with takes a second to fill each time, and its size is not what is tested."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("neo_tf.evaluation.machine._BUFFER", 16_000_000)
        yield


@pytest.fixture
def run(monkeypatch, capfd):
    """Runs the command; returns its exit status, standard output and standard error."""
    return functools.partial(run_cli, monkeypatch, capfd, "benchmark")


@pytest.fixture(scope="module")
def settings():
    return Settings.within(
        N_CTX, prompt_tokens=5, new_tokens=7, prefills=[9, 300], contexts=[300, 8, 20], batches=[3, 1], rounds=2
    )


@pytest.fixture(scope="module")
def figures(demo_folder, settings):
    return benchmark(demo_folder, settings)


def test_every_figure_is_there_and_tokens_a_second_are_the_inverse_of_the_time(figures):
    assert [row["tokens"] for row in figures["prefill"]] == [9, 300]
    assert [row["context"] for row in figures["context"]] == [8, 20, 300]
    assert [row["batch"] for row in figures["batch"]] == [1, 3]
    for row in figures["prefill"]:
        assert row["tokens_per_s"] == pytest.approx(row["tokens"] * 1000 / row["ms"])
    for row in (figures["decode"], *figures["context"]):
        assert row["tokens_per_s"] == pytest.approx(1000 / row["ms_per_token"])
    for row in figures["batch"]:
        assert row["tokens_per_s"] == pytest.approx(row["batch"] * 1000 / row["ms_per_step"])
    assert 0 < figures["decode"]["step_ms"] < figures["decode"]["ms_per_token"]
    fresh = figures["fresh_process"]
    assert all(len(values) == 2 for values in figures["samples"].values())
    for first, *parts in zip(*(figures["samples"][f"{name}_s"] for name in ("first_token", *PARTS)), strict=True):
        assert first == pytest.approx(sum(parts)) and min(parts) > 0
    assert fresh["peak_memory_bytes"] > figures["model"]["weights_bytes"]


def test_the_floor_is_bytes_over_bandwidth(figures):
    floor, speed = figures["floor"], figures["bandwidth"]["bytes_per_s"]
    assert speed > 0
    assert floor["ms_per_token"] == pytest.approx(1000 * figures["model"]["bytes_per_token"] / speed)
    assert floor["share"] == pytest.approx(floor["ms_per_token"] / figures["decode"]["ms_per_token"])


def test_it_says_what_was_measured_where(figures, demo_folder, settings):
    config = Session(demo_folder).config
    assert figures["model"]["parameters"] == 1_515_264 and figures["model"]["precision"] == "fp32"
    assert figures["model"]["cache_bytes_per_sequence"] == KVCache.bytes_per_slot(config)
    assert figures["model"]["weights_bytes"] == (demo_folder / "model.onnx_data").stat().st_size
    assert figures["versions"]["neo-tf"] == neo_tf.__version__ and figures["versions"]["numpy"] == np.__version__
    assert figures["machine"]["cpu"] and figures["machine"]["cores"] >= 1
    assert figures["settings"]["threads"] >= 1 and figures["settings"]["rounds"] == 2


def stored_bytes(folder, *without):
    """Bytes of all values that decoder.onnx holds and uses, except those of some initializers."""
    graph = onnx.load(folder / "decoder.onnx").graph
    used = {name for node in graph.node for name in node.input}
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer if tensor.name in used}
    assert set(without) <= set(values)
    return sum(value.nbytes for name, value in values.items() if name not in without)


@pytest.mark.parametrize(
    "precision, views", [("fp32", ()), ("int8", ("gpt2/wte/int8/rows",)), ("int4", ("gpt2/wte/int8/rows",))]
)
def test_a_token_reads_all_weights_and_one_row_of_the_position_table(tmp_path, precision, views):
    neo_tf.export_onnx(TINY_PYTHON, tmp_path / "onnx", precision)
    config = Session(tmp_path / "onnx").config
    # The tied embedding counts once, whole: it is the head.
    expected = stored_bytes(tmp_path / "onnx", "gpt2/wpe", *views) + 4 * config.n_embd
    assert bytes_per_token(tmp_path / "onnx" / "decoder.onnx") == expected


def test_of_an_embedding_that_is_not_the_head_a_token_reads_one_row(exported):
    folder = exported(GOLDEN / "no-weight-tie")
    expected = stored_bytes(folder, "gpt2/wpe", "gpt2/wte") + 2 * 4 * Session(folder).config.n_embd
    assert bytes_per_token(folder / "decoder.onnx") == expected


def test_rotary_tables_are_read_by_rows(exported):
    folder = exported(GOLDEN / "rotary")
    graph = onnx.load(folder / "decoder.onnx").graph
    tables = {name for node in graph.node if node.op_type == "RotaryEmbedding" for name in node.input[2:4]}
    config = Session(folder).config
    expected = stored_bytes(folder, *tables) + len(tables) * 4 * config.head_size // 2
    assert bytes_per_token(folder / "decoder.onnx") == expected


def test_bandwidth_and_peak_memory_of_a_process():
    """The peak of the tests' own process would be gigabytes, all of which would have to be written to pass it."""
    assert memory_bandwidth(1) > 0
    code = """
import numpy as np
from neo_tf.evaluation.machine import peak_memory
before = peak_memory()
np.ones(before + 50_000_000, np.uint8)
print(before, peak_memory())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=GOLDEN.parents[2])
    assert done.returncode == 0, done.stderr
    before, after = map(int, done.stdout.split())
    assert 5_000_000 < before < 500_000_000 and before + 50_000_000 <= after < 2 * before + 200_000_000


def test_progress_is_called_as_often_as_announced(demo_folder, settings):
    calls = []
    benchmark(demo_folder, settings, calls.append)
    assert calls == [1] * settings.work


def test_defaults_fit_every_context():
    for n_ctx in (3, 16, 64, 512, 2048, 4096):
        settings = Settings.within(n_ctx)
        assert settings.prompt_tokens + settings.new_tokens <= n_ctx
        assert max(settings.prefills) == n_ctx and max(settings.contexts) < n_ctx
    settings = Settings.within(2048)
    assert (settings.prompt_tokens, settings.new_tokens) == (32, 128)
    assert settings.contexts == (32, 256, 512, 1024, 1500, 2000) and settings.batches == (1, 2, 4, 8)


def test_contexts_closer_than_a_sample_and_at_the_very_end(demo_folder):
    settings = Settings.within(N_CTX, contexts=[STEPS, STEPS + 1, N_CTX - 1], rounds=1, batches=[1], prefills=[1])
    assert [row["context"] for row in benchmark(demo_folder, settings)["context"]] == [STEPS, STEPS + 1, N_CTX - 1]


def test_the_command_writes_json_and_a_plot_and_prints_a_table(run, demo_folder, tmp_path):
    pytest.importorskip("matplotlib")
    small = ("--rounds", 1, "--contexts", "8,16", "--batches", "1,2", "--prefills", "8", "--new-tokens", 4)
    for suffix, magic in MAGIC.items():
        report, drawn = tmp_path / "report.json", tmp_path / f"plot{suffix}"
        code, out, err = run(demo_folder, *small, "--json", report, "--plot", drawn)
        assert (code, err) == (0, "")
        assert drawn.read_bytes().startswith(magic)
        figures = json.loads(report.read_text())
        assert figures["settings"]["contexts"] == [8, 16] and figures["settings"]["new_tokens"] == 4
        assert f"{figures['decode']['ms_per_token']:.2f} ms" in out and "tokens/s" in out
        assert f"{figures['floor']['share']:.0%}" in out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plot.png", "plot.svg", "report.json"]


def test_one_of_several_precisions_of_a_folder(run, tmp_path):
    neo_tf.export_onnx(TINY_PYTHON, tmp_path / "onnx", ["fp32", "int8"])
    small = ("--rounds", 1, "--contexts", "8", "--batches", "1", "--prefills", "8", "--new-tokens", 4)
    read = {}
    for precision in ("fp32", "int8"):
        report = tmp_path / "report.json"
        assert run(tmp_path / "onnx", *small, "--precision", precision, "--json", report)[0] == 0
        model = json.loads(report.read_text())["model"]
        assert model["precision"] == precision
        read[precision] = model["bytes_per_token"]
    assert read["int8"] == bytes_per_token(tmp_path / "onnx" / "decoder_int8.onnx") < read["fp32"] / 2
    code, _, err = run(tmp_path / "onnx", *small, "--precision", "int4")
    assert code == 1 and err.count("\n") == 1 and "int4" in err


def test_the_plot_shows_the_figures(figures, tmp_path):
    pytest.importorskip("matplotlib")
    from matplotlib import rc_context

    with rc_context({"svg.fonttype": "none"}):  # text stays text
        draw_figures(figures, tmp_path / "plot", ".svg")
    text = (tmp_path / "plot").read_text()
    for row in figures["context"]:
        assert f">{row['ms_per_token']:.3g}<" in text
    for row in figures["batch"]:
        assert f">{row['tokens_per_s']:.3g}<" in text


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--contexts", "3000"], "n_ctx is 512"),
        (["--prefills", "513"], "n_ctx is 512"),
        (["--prompt-tokens", "500", "--new-tokens", "100"], "exceed n_ctx 512"),
        (["--new-tokens", "1"], "at least 2"),
        (["--batches", "2,0"], "batches must be at least 1"),
        (["--batches", "1;2"], "--batches must be numbers separated by commas, such as 1,2,4, not '1;2'"),
        (["--contexts", ""], "--contexts must be numbers"),
        (["--rounds", "0"], "rounds"),
        (["--device", "abacus"], "abacus"),
        (["--plot", "plot.pdf"], ".svg"),
        (["--json", "missing/report.json"], "missing/report.json"),
        (["--json", "."], "no plain file"),
    ],
)
def test_what_cannot_be_done_is_one_line_before_anything_is_measured(
    run, demo_folder, tmp_path, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("neo_tf.evaluation.speed.memory_bandwidth", lambda threads: pytest.fail("it began to measure"))
    code, out, err = run(demo_folder, *arguments)
    assert (code, out) == (1, "")
    assert err.startswith("error: ") and err.count("\n") == 1 and message in err
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_the_old_report(run, demo_folder, tmp_path, monkeypatch):
    def fail(threads):
        raise neo_tf.NeoTFError("the memory is gone")

    monkeypatch.setattr("neo_tf.evaluation.speed.memory_bandwidth", fail)
    (tmp_path / "report.json").write_text("old")
    code, _, err = run(demo_folder, "--rounds", 1, "--json", tmp_path / "report.json")
    assert code == 1 and err == "error: the memory is gone\n"
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
    assert (tmp_path / "report.json").read_text() == "old"


def test_without_matplotlib_a_plot_names_its_extra(demo_folder, tmp_path):
    code = "import sys; sys.modules['matplotlib'] = None; import neo_tf.cli; sys.argv[0] = 'x'; neo_tf.cli.main()"
    command = [sys.executable, "-c", code, "benchmark", demo_folder, "--plot", tmp_path / "plot.png"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=GOLDEN.parents[2])
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1 and "neo-tf[plot]" in done.stderr


def test_measuring_loads_neither_onnx_nor_a_drawing_library_and_goes_without_onnx(demo_folder):
    code = """
import json, sys
for name in ("onnx", "matplotlib", "tensorflow", "torch", "rich", "typer"):
    sys.modules[name] = None  # as where it is not installed
from neo_tf.evaluation.speed import Settings, benchmark
settings = Settings.within(512, contexts=[8], batches=[1], prefills=[8], new_tokens=4, rounds=1)
print(json.dumps(benchmark(sys.argv[1], settings)))
"""
    command = [sys.executable, "-c", code, demo_folder]
    done = subprocess.run(command, capture_output=True, text=True, cwd=GOLDEN.parents[2])
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["floor"] == {"ms_per_token": None, "share": None}
    assert figures["decode"]["tokens_per_s"] > 0 and figures["bandwidth"]["bytes_per_s"] > 0
