"""When a request ends, and with what text."""

from types import SimpleNamespace

import pytest
from conftest import TINY_PYTHON

from neo_tf.runtime.engine.generation import Generation
from neo_tf.runtime.engine.request import Request
from neo_tf.runtime.engine.stopping import Stopping
from neo_tf.runtime.tokenizer import Tokenizer

TEXT = "def f(x):\n    return x\n\n\nclass Naïve:\n    pass\n"


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(TINY_PYTHON / "byte-level-bpe.tokenizer.json")


def run(tokenizer, tokens, prompt=(5,), n_ctx=500, **arguments):
    """What comes of a request that is given tokens until it ends; its pieces of text add up to its text."""
    generation = Generation(Request(list(prompt), tokenizer=tokenizer, **arguments))
    stopping, pieces = Stopping(generation, SimpleNamespace(n_ctx=n_ctx)), []
    for token in tokens:
        if generation.finish_reason:
            break
        pieces.append(stopping(token))
    assert "".join(pieces) == generation.text
    return generation


def test_the_end_comes_with_the_stop_token_or_the_limit(tokenizer):
    assert run(None, [7, 8, 9, 7], stop_token_ids=(9, 2)).tokens == [7, 8, 9]
    assert run(None, [7, 8, 9, 7], max_new_tokens=2).finish_reason == "length"
    assert run(None, [7, 8, 9, 7], stop_token_ids=(8,), max_new_tokens=2).finish_reason == "stop"
    assert run(None, [7] * 50, n_ctx=10).tokens == [7] * 9
    assert run(None, [7] * 50, n_ctx=10, max_new_tokens=9).finish_reason == "length"
    assert run(None, [7] * 5).finish_reason is None


def test_no_token_left_is_an_end(tokenizer):
    generation = run(tokenizer, [*tokenizer.encode("a"), None, 7])
    assert (generation.finish_reason, generation.text, len(generation.tokens)) == ("stop", "a", 1)
    assert run(None, [None]).tokens == []


def test_time_runs_from_the_beginning(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    generation = Generation(Request([5], max_time=2.5))
    stopping = Stopping(generation, SimpleNamespace(n_ctx=100))
    now[0] = 107.0  # a time in the queue does not count
    stopping.begin()
    for now[0], reason in ((108, None), (109.5, None), (109.6, "time")):
        stopping(7)
        assert generation.finish_reason == reason
    assert generation.tokens == [7, 7, 7]


@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize(
    "stops", [["\n\n"], ["class", "return x"], ["urn x\n\n\ncl"], ["ï"], ["never", "f(x"]], ids=str
)
def test_the_text_ends_at_the_first_stop_string(tokenizer, stops, include):
    """After the token that completes it, as transformers has it, or before it."""
    tokens = tokenizer.encode(TEXT)
    generation = run(tokenizer, tokens, stop_strings=stops, include_stop_str_in_output=include)
    assert generation.finish_reason == "stop"
    # The first token after which one is there.
    count = next(n for n in range(len(tokens)) if any(stop in tokenizer.decode(tokens[:n]) for stop in stops))
    assert generation.tokens == tokens[:count]
    whole = tokenizer.decode(tokens[:count])
    assert generation.text == (whole if include else whole[: min(whole.find(stop) for stop in stops if stop in whole)])


def test_what_might_have_become_a_stop_string_is_shown_at_the_end(tokenizer):
    tokens = tokenizer.encode("return x\n\n")
    for arguments in ({"max_new_tokens": len(tokens)}, {"stop_token_ids": (tokens[-1],)}):
        generation = run(tokenizer, tokens, stop_strings=["x\n\n\n"], include_stop_str_in_output=False, **arguments)
        assert generation.finish_reason and generation.text == "return x\n\n"


def test_a_stop_string_may_begin_in_the_prompt(tokenizer):
    """As in transformers; the new text is empty then where it is to end before it."""
    for include, text in ((True, "\n  pass"), (False, "")):
        generation = run(
            tokenizer,
            tokenizer.encode("\n  pass"),
            prompt=tokenizer.encode("def f():\n"),
            stop_strings=[":\n\n"],
            include_stop_str_in_output=include,
        )
        assert generation.finish_reason == "stop"
        assert text.startswith(generation.text) and bool(generation.text) == include


def test_a_stop_string_in_the_prompt_alone_is_none(tokenizer):
    generation = run(
        tokenizer, tokenizer.encode(" x"), prompt=tokenizer.encode("a b\n\n c"), stop_strings=["\n\n", "c"]
    )
    assert generation.finish_reason is None


def test_stops_are_transformers(tokenizer):
    """Its StopStringCriteria, token by token over texts that contain the strings at all offsets."""
    torch = pytest.importorskip("torch")
    import transformers

    its = transformers.PreTrainedTokenizerFast(tokenizer_file=str(TINY_PYTHON / "byte-level-bpe.tokenizer.json"))
    for stop in ("\n\n", "return", "x)", "s\n", "e"):
        criteria = transformers.StopStringCriteria(its, [stop])
        tokens = tokenizer.encode(TEXT)
        for start in range(1, 8):
            mine = run(tokenizer, tokens[start:], prompt=tokens[:start], stop_strings=[stop])
            ends = (n for n in range(start + 1, len(tokens) + 1) if criteria(torch.tensor([tokens[:n]]), None)[0])
            end = next(ends, None)
            assert (mine.finish_reason == "stop") == (end is not None), (stop, start)
            assert end is None or mine.tokens == tokens[start:end], (stop, start)
