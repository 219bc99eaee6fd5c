"""Compares what neo-tf's pipeline and conversion make of a folder with what transformers makes of it."""

import json
import shutil

import numpy as np
import torch
from draw_tokenizer import random_text
from judge_tokenizer import Difference, same

import neo_tf
from neo_tf.errors import NeoTFError
from neo_tf.runtime.engine.request import Request

TOLERANCE = 1e-4  # absolute, on fp32 logits
# Two scores that lie nearer to each other may change places by rounding.
TIE = 1e-3
WAYS = ("huggingface", "keras", "mesh-tf", "keras mesh-tf", "mesh-tf keras")
WEIGHTS = (".safetensors", ".bin", ".index.json")


class Refused(Exception):
    """neo-tf refuses, with a message of its own, what transformers takes."""


def check_model(draw, folder, judged, counts):
    """Compares continuations, logits, and what comes back from conversions, with transformers.

    Args:
        draw: A random.Random.
        folder: The folder.
        judged: The folder with the same meaning that transformers reads.
        counts: A Counter of what is worth knowing about the run.

    Raises:
        Difference: They differ.
        Refused: neo-tf refuses the folder, or a call, and transformers does not.
    """
    import transformers

    theirs = transformers.pipeline("text-generation", model=str(judged), dtype=torch.float32)
    theirs.model.eval()
    try:
        ours = neo_tf.pipeline(model=folder, threads=1)
    except NeoTFError as error:
        raise Refused(f"{error}") from None
    _compare_logits(draw, ours, theirs)
    for _ in range(3):
        _compare_call(draw, ours, theirs, counts)
    _compare_round_trip(draw, folder, judged, theirs, counts)


def _compare_logits(draw, ours, theirs):
    ids = [draw.randrange(ours.config.n_vocab) for _ in range(draw.randrange(1, 40))]
    (found,) = ours.engine.generate([Request(ids, max_new_tokens=1, output_logits=True)])
    _near("logits", found.logits[0], _logits(theirs.model, ids)[-1])


def _logits(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].numpy()


def _near(what, found, expected):
    worst = np.abs(np.asarray(found) - expected).max()
    if not worst < TOLERANCE:
        raise Difference(f"{what}: {worst} away")


def _compare_call(draw, ours, theirs, counts):
    text = random_text(draw)
    call = {"do_sample": False}
    if draw.random() < 0.8:
        call["max_new_tokens"] = draw.choice([1, 6, 12])
    if draw.random() < 0.3:
        call["return_full_text"] = draw.random() < 0.5
    if draw.random() < 0.2:
        call["skip_special_tokens"] = draw.random() < 0.5
    if draw.random() < 0.2:
        call["clean_up_tokenization_spaces"] = draw.random() < 0.5
    try:
        (expected,) = theirs(text, **call)
    except Exception as error:  # neo-tf may answer such a call, or refuse it in one line
        counts[f"calls that transformers refuses: {type(error).__name__}: {str(error)[:60]}"] += 1
        try:
            ours(text, **call)
        except NeoTFError as own:
            same("lines of the message", len(str(own).splitlines()), 1)
        return
    counts["calls compared"] += 1
    try:
        (found,) = ours(text, **call)
    except NeoTFError as error:
        raise Refused(f"{error} (call {call}, prompt {text!r})") from None
    if found["generated_text"] != expected["generated_text"] and not _is_tie(text, call, ours, theirs):
        raise Difference(f"text after {text!r} with {call}: {found!r}, and not {expected!r}")
    counts["ties"] += found["generated_text"] != expected["generated_text"]


def _is_tie(text, call, ours, theirs):
    """Whether the first token that differs had, by our scores, the score of the other, but for rounding."""
    call = {name: value for name, value in call.items() if name in ("do_sample", "max_new_tokens")}
    (expected,) = theirs(text, return_tensors=True, **call)
    (found,) = ours(text, return_tensors=True, return_full_text=False, output_scores=True, **call)
    (whole,) = ours(text, return_tensors=True, return_full_text=True, **call)
    begin = len(whole["generated_token_ids"]) - len(found["generated_token_ids"])
    if "scores" not in found:
        return False
    pairs = zip(found["generated_token_ids"], expected["generated_token_ids"][begin:], found["scores"], strict=False)
    for own, its, scores in pairs:
        if own != its:
            return bool(abs(scores[own] - scores[its]) < TIE)  # of two that are minus infinity it is NaN
    return False


def _compare_round_trip(draw, folder, judged, theirs, counts):
    """A folder that went through other formats, and back, is the same folder."""
    from transformers import AutoTokenizer, GPTNeoForCausalLM

    held = folder
    for step, form in enumerate([*draw.choice(WAYS).split(), "huggingface"]):
        try:
            neo_tf.convert(held, folder.parent / f"held{step}", form)
        except NeoTFError as error:
            if "the original has no key for" in str(error):  # of layer_norm_epsilon, n_inner or untied_lm_head
                counts["models that the original's format cannot hold"] += 1
                continue
            raise Refused(f"to {form}: {error}") from None
        held = folder.parent / f"held{step}"
    counts["round trips"] += 1
    same("files that came back", _files(held), _files(folder))
    tokenizer = AutoTokenizer.from_pretrained(held)
    for _ in range(3):
        text = random_text(draw)
        same(f"ids of {text!r} that came back", tokenizer(text)["input_ids"], theirs.tokenizer(text)["input_ids"])
    model = GPTNeoForCausalLM.from_pretrained(held, dtype=torch.float32).eval()
    ids = [draw.randrange(model.config.vocab_size) for _ in range(30)]
    _near("logits that came back", _logits(model, ids), _logits(theirs.model, ids))
    for name in ("eos_token_id", "bos_token_id", "pad_token_id"):
        same(f"config's {name}", getattr(model.config, name), getattr(theirs.model.config, name))
    same(
        "settings of generation that came back", _settings(model), _settings(GPTNeoForCausalLM.from_pretrained(judged))
    )


def _settings(model):
    """What transformers reads of a folder's settings. use_cache changes no text."""
    found = model.generation_config.to_diff_dict()
    return {name: value for name, value in found.items() if name not in ("use_cache", "transformers_version")}


def _files(folder):
    """The files that are kept as they are, {name: content}.

    A tokenizer_class that config.json declares is read into tokenizer_config.json: there it has the same meaning.
    """
    found = {path.name: path for path in folder.iterdir() if path.is_file() and not path.name.endswith(WEIGHTS)}
    files = {name: path.read_bytes() for name, path in found.items() if name != "config.json"}
    declared = json.loads((folder / "config.json").read_text()).get("tokenizer_class")
    if declared:
        settings = json.loads(files.get("tokenizer_config.json", "{}"))
        settings["tokenizer_class"] = settings.get("tokenizer_class") or declared
        files["tokenizer_config.json"] = json.dumps(settings).encode()
    return files


def judged_copy(folder):
    """A copy of a folder with the weights of folder/plain, which transformers reads. folder/plain is removed."""
    copy = folder.parent / "judged"
    shutil.move(folder / "plain", copy)
    for path in folder.iterdir():
        if not path.name.endswith(WEIGHTS):
            shutil.copy(path, copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"dtype": "float32"}))
    return copy
