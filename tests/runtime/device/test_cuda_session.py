"""A session on CUDA, on the stand-in: the CPU's numbers, captured steps, and what the stand-in would catch."""

import gc
import threading

import numpy as np
import pytest
from conftest import GOLDEN, TOLERANCE
from cuda_layout import export_cuda_layout
from cuda_standin import Gpus, stand_in

from neo_tf.errors import EngineError
from neo_tf.onnx_folder import OnnxFolder
from neo_tf.runtime.device.buckets import pieces, row_buckets
from neo_tf.runtime.device.cudart import Cudart
from neo_tf.runtime.device.memory import CudaBlock
from neo_tf.runtime.device.session import Session

pytestmark = pytest.mark.cuda_standin
MODELS = ("tiny-global-local", "mem-kv", "attn-mix")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """{model: its folder with CUDA's graphs and caches}."""
    root = tmp_path_factory.mktemp("cuda")
    return {name: export_cuda_layout(GOLDEN / name, root / name) for name in MODELS}


@pytest.fixture
def gpus(monkeypatch):
    return stand_in(monkeypatch)


def texts(config, rows):
    return np.random.default_rng(7).integers(0, config.n_vocab, (rows, config.n_ctx))


def walk(session, lengths=(30, 3, 41), steps=4):
    """Logits of rows of several lengths, prefilled and then decoded together: [steps, rows, n_vocab]."""
    ids, past, found = texts(session.config, len(lengths)), np.array(lengths), []
    for row, length in enumerate(lengths):
        session.prefill(row, ids[row, :length], 0, logits_of=0 if row else 1)
    for _ in range(steps):
        decoded = session.decode(0, ids[np.arange(len(lengths)), past], past)
        found.append([decoded.logits(row).copy() for row in range(len(lengths))])
        past = past + 1
    return np.array(found)


def cuda_graph(session):
    """The stand-in's session behind a Session."""
    return session._decoder.session


# ---- the same numbers


@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_logits_are_the_cpus(folders, gpus, name, graphs):
    session = Session(folders[name], slots=3, graphs=graphs)
    session.warm_up()
    expected = walk(Session(folders[name], slots=3, device="cpu"))
    assert np.abs(walk(session) - expected).max() < TOLERANCE
    assert session.graphs == (graphs and name == "tiny-global-local")


@pytest.mark.parametrize("past", [0, 1, 40, 200])
@pytest.mark.parametrize("n", [1, 2, 15, 17, 56])
@pytest.mark.parametrize("logits_of", [0, 1, 5, "all"])
def test_padded_chunks_are_the_cpus_up_to_the_last_position(folders, gpus, past, n, logits_of):
    session, cpu = (Session(folders["tiny-global-local"], device=device) for device in ("cuda", "cpu"))
    ids = texts(session.config, 1)[0]
    logits_of = min(logits_of, n) if logits_of != "all" else logits_of
    found = []
    for one in (session, cpu):
        if past:
            one.prefill(0, ids[:past], 0, logits_of=0)
        first = one.prefill(0, ids[past : past + n], past, logits_of)
        then = ids[past + n : past + n + 1]
        after = one.decode(0, then, np.array([past + n])).logits(0).copy() if len(then) else np.zeros(1)
        found.append((first, after))
    for ours, theirs in zip(*found, strict=True):
        assert ours.shape == theirs.shape and np.abs(ours - theirs).max(initial=0) < TOLERANCE


def test_what_is_chosen_comes_by_one_copy_and_logits_row_by_row(folders, gpus):
    session, cpu = (Session(folders["tiny-global-local"], slots=3, device=device) for device in ("cuda", "cpu"))
    session.warm_up()
    arguments = np.array([5, 6, 7]), np.array([0, 0, 0]), np.array([1, 0.5, 2], np.float32)
    gpus.pushes.clear(), gpus.pulls.clear()
    ours, theirs = (one.decode(0, *arguments) for one in (session, cpu))
    assert len(gpus.pushes) == len(gpus.pulls) == 1
    np.testing.assert_array_equal(ours.top_ids, theirs.top_ids)
    np.testing.assert_allclose(ours.top_logprobs, theirs.top_logprobs, atol=1e-5)
    np.testing.assert_allclose(ours.logits(1), theirs.logits(1), atol=1e-5)
    assert gpus.pulls[1:] == [4 * session.config.n_vocab]


def test_idle_rows_at_their_own_length_lose_nothing(folders, gpus):
    """A half-prefilled row takes part in three steps of others, and goes on as if it had not."""
    session = Session(folders["tiny-global-local"], slots=2)
    ids = texts(session.config, 2)
    for slot in (0, 1):
        session.prefill(slot, ids[slot, :20], 0, logits_of=0)
    for step in range(3):
        session.decode(0, np.array([ids[0, 20 + step], 9]), np.array([20 + step, 20]))
    found = session.prefill(1, ids[1, 20:40], 20)
    expected = Session(folders["tiny-global-local"], device="cpu").prefill(0, ids[1, :40], 0)
    assert np.abs(found - expected).max() < TOLERANCE


@pytest.mark.parametrize("name", MODELS)
def test_copies_and_stores_on_the_device_are_the_cpus(folders, gpus, name):
    """A slot's copy from some position on, and the way through a store of blocks, as for shared prefixes."""
    found = []
    for device in ("cuda", "cpu"):
        session = Session(folders[name], slots=3, device=device)
        cache, ids = session.cache, texts(session.config, 2)
        session.prefill(0, ids[0, :40], 0)
        session.prefill(1, [*ids[0, :25], *ids[1, :15]], 0)
        cache.copy(0, 1, 25, 40)
        if not cache.has_sums:
            store = cache.store(2, 16)
            for block in (0, 1):
                cache.save(1, 16 * block, 16 * block + 16, 40, store, block)
            for block in (0, 1):
                cache.load(2, 16 * block, 16 * block + 16, 32, store, block)
            session.prefill(2, ids[0, 32:40], 32)
        slots = 2 if cache.has_sums else 3
        ranges = [(slot, slot + 1) for slot in range(slots)] if cache.has_sums else [(0, slots)]
        logits = []
        for first, end in ranges:
            decoded = session.decode(first, np.full(end - first, 7), np.full(end - first, 40))
            logits += [decoded.logits(row).copy() for row in range(end - first)]
        found.append(np.array(logits))
        assert np.abs(logits - logits[0]).max() < TOLERANCE
    assert np.abs(found[0] - found[1]).max() < TOLERANCE


# ---- capture


def test_warm_up_captures_every_bucket_and_nothing_is_captured_later(folders, gpus):
    session = Session(folders["tiny-global-local"], slots=5)
    session.warm_up()
    graph = cuda_graph(session)
    assert sorted(graph.captured) == list(session.buckets) == [1, 2, 4, 5]
    runs, taken = graph.runs, gpus.taken
    for count in session.buckets:
        session.decode(0, np.zeros(count, int), np.zeros(count, int))
    assert graph.runs - runs == len(session.buckets)
    session.prefill(1, np.arange(70), 0)
    memory = gpus.taken
    for turn in range(30):
        session.prefill(turn % 5, np.arange(1 + 2 * turn), 0, "all")
        session.decode(0, np.zeros(4, int), np.zeros(4, int))
    assert sorted(graph.captured) == [1, 2, 4, 5] and memory - taken < 100_000
    session.prefill(0, np.arange(200), 0, "all")
    assert gpus.taken - memory < 100_000, "the memory is not flat"


def test_a_bucket_captured_while_rows_run_changes_nothing(folders, gpus):
    """With full-length caches a step may be run three times."""
    expected = walk(Session(folders["tiny-global-local"], slots=3, device="cpu"))
    session = Session(folders["tiny-global-local"], slots=3)  # captured by the walk's first step
    assert np.abs(walk(session) - expected).max() < TOLERANCE


def test_models_that_cannot_be_captured_say_so_and_run(folders, gpus, caplog):
    assert not Session(folders["attn-mix"]).graphs
    assert "attn-mix: decoded without CUDA graphs (attention type linear" in caplog.text


def test_the_environment_turns_graphs_off(folders, gpus, monkeypatch):
    monkeypatch.setenv("NEO_TF_CUDA_GRAPH", "0")
    session = Session(folders["tiny-global-local"])
    assert not session.graphs and cuda_graph(session).settings["enable_cuda_graph"] == "0"


def test_memory_goes_back_with_the_session(folders, gpus):
    session = Session(folders["tiny-global-local"], slots=3)
    session.warm_up()
    assert gpus.taken > 10**6
    del session
    gc.collect()
    assert gpus.taken == 0


def test_the_caches_are_zero_at_first(folders, gpus):
    """A GPU's memory is not, and 0 x NaN is NaN where a kernel reads more than it needs."""
    session = Session(folders["tiny-global-local"], slots=2)
    memory = session.cache._memory
    size = 2 * memory.tensors[0].nbytes
    target = np.ones(size, np.uint8)
    Cudart(0).pull(target.ctypes.data, memory.address(0, 0), size)
    assert not target.any()


# ---- mistakes that must not go unnoticed


def test_a_push_that_is_forgotten_is_seen(folders, gpus, monkeypatch):
    expected = walk(Session(folders["tiny-global-local"], slots=3, device="cpu"))
    session = Session(folders["tiny-global-local"], slots=3)
    monkeypatch.setattr(CudaBlock, "push", lambda block: None)
    assert np.abs(walk(session) - expected).max() > 0.1


def test_a_copy_that_is_not_waited_for_is_seen(folders, gpus, monkeypatch):
    expected = walk(Session(folders["tiny-global-local"], slots=3, device="cpu"))
    session = Session(folders["tiny-global-local"], slots=3)
    monkeypatch.setattr(Cudart, "_wait", lambda cudart: None)
    assert np.abs(np.nan_to_num(walk(session)) - expected).max() > 0.1


@pytest.mark.parametrize("constant", ["_total", "_start"])
def test_a_constant_cannot_change_after_the_capture(folders, gpus, constant):
    session = Session(folders["tiny-global-local"], slots=3)
    session.warm_up()
    value = getattr(session._decoders[0, 2], constant)
    with pytest.raises(ValueError, match="read-only"):
        value[...] = 5
    value.flags.writeable = True
    value[...] = 5
    with pytest.raises(AssertionError, match="changed, and a replay does not see it"):
        session.decode(0, np.zeros(2, int), np.zeros(2, int))


def test_a_buffer_cannot_move_after_the_capture(folders, gpus):
    session = Session(folders["tiny-global-local"], slots=3)
    session.warm_up()
    step = session._decoders[0, 1]
    with pytest.raises(EngineError, match="cannot be moved"):
        step.bind(session.cache, 1)
    session.cache.bind(step._binding, 1, 1)
    with pytest.raises(AssertionError, match=r"graph 1: .*past_key_values.0.key.* moved"):
        session.decode(0, np.zeros(1, int), np.zeros(1, int))


def test_a_total_that_is_less_than_a_rows_length_is_seen(folders, gpus):
    session = Session(folders["tiny-global-local"], slots=2)
    last = session.config.n_ctx - 1
    session.decode(0, np.zeros(2, int), np.array([0, last]))
    total = session._decoders[0, 2]._total
    assert total == session.config.n_ctx
    total.flags.writeable = True
    total[...] = last
    with pytest.raises(AssertionError, match="total_sequence_length"):
        cuda_graph(session)._run(session._decoders[0, 2]._binding)


def test_every_thread_decodes_in_the_sessions_own(folders, gpus):
    session = Session(folders["tiny-global-local"], slots=2)
    expected = walk(session, lengths=(5, 9))
    found = []
    thread = threading.Thread(target=lambda: found.append(walk(session, lengths=(5, 9))))
    thread.start()
    thread.join()
    np.testing.assert_array_equal(found[0], expected)
    assert {captured_in for *_, captured_in in cuda_graph(session).captured.values()} == {session.thread.ident}


def test_a_captured_step_is_refused_in_another_thread(folders, gpus, monkeypatch):
    session = Session(folders["tiny-global-local"], slots=2)
    session.warm_up()
    arguments = 0, np.zeros(1, int), np.zeros(1, int), None
    with pytest.raises(EngineError, match="in the thread that captured it"):
        session._decode(*arguments)
    monkeypatch.setattr("neo_tf.runtime.device.step.Step._check_thread", lambda step: None)
    with pytest.raises(AssertionError, match="belongs to another thread"):
        session._decode(*arguments)


def test_a_capture_of_running_sums_is_seen(folders, gpus, monkeypatch):
    """Linear attention adds to its sums in each of the three runs: that is why it is not captured."""
    expected = walk(Session(folders["attn-mix"], slots=1, device="cpu"), (30,), 1)
    monkeypatch.setattr(OnnxFolder, "why_not_captured", lambda folder: [])
    found = walk(Session(folders["attn-mix"], slots=1), (30,), 1)
    assert np.abs(found - expected).max() > 0.01


def test_host_memory_bound_as_an_input_is_copied_when_it_is_bound(folders, gpus, monkeypatch):
    """What the session did before: its steps computed on what the arrays held when they were bound."""
    session = Session(folders["tiny-global-local"])
    binding = cuda_graph(session).io_binding()
    ids = np.zeros((1, 1), np.int64)
    binding.bind_input("input_ids", "cpu", 0, np.int64, ids.shape, ids.ctypes.data)
    ids[:] = 7
    assert binding._copies["input_ids"].tolist() == [[0]]
    with pytest.raises(AssertionError, match="does not lie in the GPU's memory"):
        binding.bind_input("input_ids", "cuda", 0, np.int64, ids.shape, ids.ctypes.data)


# ---- shapes


@pytest.mark.parametrize("slots, sizes", [(1, [1]), (2, [1, 2]), (5, [1, 2, 4, 5]), (8, [1, 2, 4, 8])])
def test_buckets_of_rows(slots, sizes):
    assert list(row_buckets(slots)) == sizes


def test_pieces_cover_a_prompt_and_stay_in_the_context():
    for silent, scored in [(0, 1), (1, 0), (511, 1), (513, 0), (100, 100), (0, 300), (37, 2)]:
        for spare in (0, 1, 15, 16, 60, 600):
            room = silent + scored + spare
            found = list(pieces(silent, scored, room))
            assert sum(piece.length for piece in found if not piece.is_scored) == silent
            assert sum(piece.length for piece in found if piece.is_scored) == scored
            at = 0
            for piece in found:
                assert 1 <= piece.length <= piece.tokens and at + piece.tokens <= room
                at += piece.length
    assert [piece.tokens for piece in pieces(511, 0, 2048)] == [512]
    assert [piece.tokens for piece in pieces(600, 1, 2048)] == [512, 128, 1]


def test_a_gpu_without_memory_is_told(gpus):
    cudart = Cudart(0)
    gpus.memory = 100
    with pytest.raises(Exception, match=r"CUDA: out of memory \(cudaMalloc, error 2\)"):
        cudart.allocate(200)
    with pytest.raises(Exception, match=r"CUDA: invalid device ordinal"):
        Cudart(5).free_memory()
    assert Gpus(count=3).count == 3
