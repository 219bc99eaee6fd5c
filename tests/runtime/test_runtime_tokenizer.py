"""Text and ids; text that streams comes in whole characters."""

import pytest
from conftest import TINY_PYTHON

from neo_tf.errors import CheckpointError
from runtime.tokenizer import Tokenizer

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
    assert tokenizer.decode(ids) == "ab"
    assert tokenizer.decode([0, 1]) == ""


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
