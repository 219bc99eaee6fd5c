"""Text and ids; text that streams comes in whole characters."""

from itertools import pairwise

import pytest
from conftest import TINY_PYTHON
from hypothesis import given, settings
from hypothesis import strategies as st

from neo_tf.errors import CheckpointError
from neo_tf.runtime.text_pieces import BytePieces
from neo_tf.runtime.text_stream import TextStream
from neo_tf.runtime.tokenizer import Tokenizer

FILE = TINY_PYTHON / "byte-level-bpe.tokenizer.json"
TEXTS = [
    "def f(x):\n    return x + 1\n",
    "  leading and trailing  ",
    "naïve — 你好 🎉é",
    "👩‍👩‍👧 ﬁ ﷽",
    "\t\r\n\x00",
]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(FILE)


@pytest.mark.parametrize("text", TEXTS)
def test_text_comes_back(tokenizer, text):
    ids = tokenizer.encode(text)
    assert all(type(token) is int for token in ids)
    assert tokenizer.decode(ids) == text


def test_ids_are_transformers(tokenizer):
    transformers = pytest.importorskip("transformers")
    other = transformers.PreTrainedTokenizerFast(tokenizer_file=str(FILE))
    for text in [*TEXTS, "a<|endoftext|>b"]:
        assert tokenizer.encode(text) == other(text)["input_ids"]


def test_special_tokens_are_read_and_not_written(tokenizer):
    ids = tokenizer.encode("a<|endoftext|>b")
    assert ids[1] == 0 and len(ids) == 3
    assert tokenizer.decode(ids, skip_special_tokens=True) == "ab"
    assert tokenizer.decode([0, 1], skip_special_tokens=True) == ""


@pytest.mark.parametrize("text", TEXTS)
def test_streamed_pieces_join_to_the_text(tokenizer, text):
    ids = tokenizer.encode(text)
    piece = tokenizer.stream([])
    pieces = [piece(token) for token in ids]
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("text", TEXTS)
def test_a_stream_goes_on_after_a_prompt(tokenizer, text):
    prompt = tokenizer.encode("# a prompt: é")
    piece = tokenizer.stream(prompt)
    assert "".join(piece(token) for token in tokenizer.encode(text)) == text


def test_a_character_waits_for_its_last_byte(tokenizer):
    ids = tokenizer.encode("🎉!")
    assert len(ids) > 3  # a token for each byte or two
    piece = tokenizer.stream([])
    assert [piece(token) for token in ids] == [*[""] * (len(ids) - 2), "🎉", "!"]


def test_a_stream_after_a_prompt_that_ends_inside_a_character(tokenizer):
    """Such prompts come as ids. What is streamed completes the character, and says nothing of the prompt again."""
    text = "naïve — 你好 🎉é"
    ids = tokenizer.encode(text)
    for cut in range(len(ids) + 1):
        piece = tokenizer.stream(ids[:cut])
        whole = tokenizer.decode(ids[:cut]).rstrip("\ufffd")
        assert whole + "".join(piece(token) for token in ids[cut:]) == text, cut


def test_streamed_special_tokens_are_silent(tokenizer):
    piece = tokenizer.stream([])
    ids = tokenizer.encode("a<|endoftext|>b")
    assert [piece(token) for token in ids] == ["a", "", "b"]


def test_a_folder_means_its_tokenizer(tokenizer, demo_folder):
    assert Tokenizer(demo_folder).encode(TEXTS[0]) == tokenizer.encode(TEXTS[0])


@pytest.mark.parametrize("content", [None, "", "{}", '{"version": "1.0"}', "no json"])
def test_a_missing_or_malformed_file_is_refused(tmp_path, content):
    file = tmp_path / "tokenizer.json"
    if content is not None:
        file.write_text(content)
    for path in (file, tmp_path):
        with pytest.raises(CheckpointError, match="tokenizer") as error:
            Tokenizer(path)
        assert "\n" not in str(error.value)


# ---- stop strings


def naive(text, stops):
    """Where a text that comes character by character ends before a stop string: (what is left of it, whether)."""
    for end in range(1, len(text) + 1):
        found = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: min(found)], True
    return text, False


def cut_pieces(cuts):
    """The pieces of a byte-level tokenizer whose tokens are the bytes of a text, cut anywhere."""
    return BytePieces(lambda ids: b"".join(cuts[token] for token in ids).decode("utf-8", "replace"))


@given(
    text=st.text("ab\né🎉", max_size=30),
    stops=st.lists(st.text("ab\né🎉", min_size=1, max_size=5), min_size=1, max_size=3),
    cuts=st.lists(st.integers(0, 120), max_size=20),
)
@settings(max_examples=1000, deadline=None)
def test_stop_strings_are_found_however_the_text_is_cut(text, stops, cuts):
    """The text that streams is what is left before the stop string; nothing that streamed is taken back."""
    data = text.encode()
    cuts = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    pieces = [data[start:end] for start, end in pairwise(cuts)]
    expected, stopped = naive(text, stops)
    for include in (False, True):
        stream, shown, used = TextStream(cut_pieces(pieces), stops, include), "", 0
        for token in range(len(pieces)):
            shown, used = shown + stream(token), token + 1
            if not include:
                assert expected.startswith(shown)
            if stream.stopped:
                break
        shown += stream.finish()
        assert stream.stopped == stopped
        assert shown == (b"".join(pieces[:used]).decode("utf-8", "replace") if include else expected)


@given(text=st.text(max_size=20), stop=st.text(min_size=1, max_size=3))
@settings(max_examples=300, deadline=None)
def test_no_more_is_held_back_than_may_become_a_stop_string(text, stop):
    stream, shown = TextStream(cut_pieces([char.encode() for char in text]), [stop], False), ""
    for token in range(len(text)):
        shown += stream(token)
        if stream.stopped:
            break
        held = text[len(shown) : token + 1].rstrip("\ufffd")
        assert stop.startswith(held)


def test_text_before_an_open_character_does_not_wait_for_it():
    stream = TextStream(cut_pieces([b"a \xf0", b"\x9f\x8e", b"\x89!", b"\xff\xff", b"b"]))
    assert [stream(token) for token in range(5)] == ["a ", "", "🎉!", "\ufffd", "\ufffdb"]


def test_a_mark_that_a_prompt_means_is_not_said_again(tokenizer):
    ids = tokenizer.encode("x\ufffd")
    stream = tokenizer.stream(ids)
    assert stream.before == "x\ufffd"
    assert "".join(stream(token) for token in tokenizer.encode("y")) == "y"
