"""Exported folders, unchanged, in other runtimes; `make peers` installs them, each in an environment of its own.

Judges are the original's continuations, and transformers' own generate on the same weights.
"""

import json
import subprocess
from pathlib import Path

import pytest
import torch
import transformers
from conftest import GLOBAL_LOCAL, GOLDEN, TINY_PYTHON, Reference
from peer_helpers import PEERS
from peer_helpers import peer as installed

import neo_tf
from neo_tf.evaluation.portable_session import PortableSession

HERE = Path(__file__).parent
COMMANDS = {
    "genai": [PEERS / "genai/bin/python", HERE / "run_genai.py"],
    "optimum": [PEERS / "optimum/bin/python", HERE / "run_optimum.py"],
    "js": ["node", HERE / "run_transformers_js.mjs"],
}
LOCAL = "tiny-local-radius"  # windows of 16 tokens
PROMPTS = {"tiny-python": ["def read_lines(path):\n", "import os\n\n\nclass", "x = ["]}


def run(peer, folder, *tasks):
    """The tokens that a peer makes of each task: a list of rows, prompt included."""
    installed(peer)
    job = {"folder": str(folder), "modules": str(PEERS / "js/node_modules"), "tasks": tasks}
    done = subprocess.run(COMMANDS[peer], input=json.dumps(job), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def task(*prompts, **options):
    return {"prompts": list(prompts), "options": options}


def golden_rows(name, end):
    """(prompt, continuation) of the original, as far as the token that ends a text where none was meant to."""
    rows = []
    for key, pairs in Reference.load(GOLDEN / name).greedy.items():
        if "stop" not in key and "eos" not in key:
            rows += [(prompt, new[: new.index(end) + 1] if end in new else new) for prompt, new in pairs if new]
    return rows


def demo_ids():
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(TINY_PYTHON / "byte-level-bpe.tokenizer.json"))
    return [tokenizer(text)["input_ids"] for text in PROMPTS["tiny-python"]]


@pytest.fixture(scope="session")
def judge(tmp_path_factory):
    """A function from a checkpoint to transformers' own model of it."""
    done = {}

    def load(source):
        if source not in done:
            folder = tmp_path_factory.mktemp("judge") / source.name
            neo_tf.convert(source, folder, to="huggingface")
            done[source] = transformers.GPTNeoForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        return done[source]

    return load


def generate(model, prompt, **options):
    """transformers' tokens of one prompt, alone."""
    ids = torch.tensor([prompt])
    return model.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=0, **options)[0].tolist()


def trimmed(row, end, length):
    """A row up to the token that ends it, without what a runtime puts after it in a batch."""
    new = row[length:]
    return row[:length] + (new[: new.index(end) + 1] if end in new else new)


# ---- onnxruntime-genai


@pytest.mark.parametrize("shared", [True, False, None], ids=["one buffer", "two buffers", "as configured"])
@pytest.mark.parametrize("name", GLOBAL_LOCAL)
def test_genai_gives_the_originals_continuations(exported, name, shared):
    folder = exported(GOLDEN / name)
    end = json.loads((folder / "genai_config.json").read_text())["model"]["eos_token_id"]
    sharing = {} if shared is None else {"past_present_share_buffer": shared}
    rows = golden_rows(name, end)
    assert rows and max(len(prompt) + len(new) for prompt, new in rows) > 60
    tasks = [task(prompt, max_length=len(prompt) + len(new), **sharing) for prompt, new in rows]
    for (prompt, new), [found] in zip(rows, run("genai", folder, *tasks), strict=True):
        assert found == prompt + new


def test_genai_ends_a_text_or_fills_the_context(demo_folder, judge):
    prompts, model = demo_ids(), judge(TINY_PYTHON)
    for prompt, [found] in zip(prompts, run("genai", demo_folder, *map(task, prompts)), strict=True):
        assert len(found) == 512 or found[-1] == model.generation_config.eos_token_id
        expected = generate(model, prompt, max_new_tokens=60, do_sample=False)
        assert found[: len(expected)] == expected


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_genai_runs_a_batch_of_unequal_lengths(demo_folder, judge, options):
    prompts, model = demo_ids(), judge(TINY_PYTHON)
    width = max(map(len, prompts))
    [found] = run("genai", demo_folder, task(*prompts, max_length=width + 30, **options))
    alone = run("genai", demo_folder, *(task(ids, max_length=len(ids) + 30, **options) for ids in prompts))
    for ids, row, [own] in zip(prompts, found, alone, strict=True):
        new = row[width:]
        assert row[: len(ids)] == ids and len(new) == 30
        assert new == own[len(ids) :]
        if not options:
            assert new == generate(model, ids, max_new_tokens=30, min_new_tokens=30, do_sample=False)[len(ids) :]


def test_genai_runs_heads_that_no_fused_operator_takes(tmp_path, judge):
    torch.manual_seed(0)
    model = transformers.GPTNeoForCausalLM(
        transformers.GPTNeoConfig(
            vocab_size=97,
            hidden_size=64,
            num_layers=2,
            num_heads=16,
            attention_types=[[["global", "local"], 1]],
            max_position_embeddings=64,
            window_size=8,
            initializer_range=0.1,
            bos_token_id=96,
            eos_token_id=96,
        )
    ).eval()
    model.save_pretrained(tmp_path / "model")
    neo_tf.export_onnx(tmp_path / "model", tmp_path / "onnx")
    [[found]] = run("genai", tmp_path / "onnx", task([4, 32, 16, 64, 44]))
    assert found == generate(model, [4, 32, 16, 64, 44], max_length=64, do_sample=False)
    assert len(found) > 20


@pytest.mark.parametrize(
    ("precision", "ops"), [("int8", "fused"), ("int4", "fused"), ("fp32", "standard"), ("int8", "standard")]
)
def test_genai_runs_lower_precisions_and_standard_operators(precision, ops, tmp_path):
    neo_tf.export_onnx(TINY_PYTHON, tmp_path / "onnx", precision, ops=ops)
    portable, prompt = PortableSession(tmp_path / "onnx"), demo_ids()[0]
    expected, logits = list(prompt), portable.prefill(0, prompt, 0)
    while len(expected) < len(prompt) + 20:
        expected.append(int(logits[-1].argmax()))
        logits = portable.prefill(0, expected[-1:], len(expected) - 1)
    assert run("genai", tmp_path / "onnx", task(prompt, max_length=len(expected))) == [[expected]]


# ---- Optimum


@pytest.mark.parametrize("source", [TINY_PYTHON, GOLDEN / LOCAL, GOLDEN / "tiny-global-local"], ids=lambda p: p.name)
def test_optimum_generates_as_transformers_also_in_a_left_padded_batch(exported, judge, source):
    model, tasks = judge(source), []
    if source == TINY_PYTHON:
        prompts = demo_ids()
    else:
        inputs = Reference.load(source).inputs
        prompts = [inputs[0, :24].tolist(), inputs[1, :5].tolist(), inputs[1, 5:16].tolist()]
    kinds = [{"do_sample": False, "max_new_tokens": 24} | more for more in ({}, {"num_beams": 3})]
    for options in kinds:
        tasks += [*(task(ids, **options) for ids in prompts), task(*prompts, **options)]
    found, end = run("optimum", exported(source), *tasks), model.generation_config.eos_token_id
    for options, answers in zip(kinds, (found[:4], found[4:]), strict=True):
        for row, ids in enumerate(prompts):
            expected = generate(model, ids, **options)
            assert answers[row] == [expected] and len(expected) > len(ids) + 5
            assert trimmed(answers[3][row], end, len(ids)) == expected


# ---- transformers.js


@pytest.mark.parametrize("name", ["tiny-global-local", LOCAL, "vocab-padded"])
def test_transformers_js_gives_the_originals_continuations(exported, name):
    rows = golden_rows(name, None)
    tasks = [task(prompt, max_new_tokens=len(new), do_sample=False) for prompt, new in rows]
    for (prompt, new), [found] in zip(rows, run("js", exported(GOLDEN / name), *tasks), strict=True):
        assert found == prompt + new


def test_transformers_js_reads_the_tokenizer_and_ends_a_text(demo_folder, judge):
    model, options = judge(TINY_PYTHON), {"max_new_tokens": 60, "do_sample": False}
    found = run("js", demo_folder, *(task(text, **options) for text in PROMPTS["tiny-python"]))
    for ids, [row] in zip(demo_ids(), found, strict=True):
        assert row == generate(model, ids, **options)
