"""Compares what neo-tf makes of a folder with what transformers makes of it."""

from draw_tokenizer import NAMES, random_text

from neo_tf.errors import NeoTFError
from neo_tf.runtime.tokenizer import Tokenizer


class Difference(Exception):
    """neo-tf and transformers differ."""


def same(what, found, expected):
    """Raises Difference where two values are not the same."""
    if found != expected:
        raise Difference(f"{what}: {found!r}, and not {expected!r}")


def check_tokenizer(draw, folder):
    """Compares ids, text, streamed text and attributes of a folder's tokenizer with AutoTokenizer's.

    Returns:
        transformers' tokenizer, or None where it refuses the folder.
    """
    from transformers import AutoTokenizer

    try:
        theirs = AutoTokenizer.from_pretrained(folder)
    except Exception:  # neo-tf may take such a folder, or refuse it in one line
        try:
            Tokenizer(folder)
        except NeoTFError as error:
            same("lines of the message", len(str(error).splitlines()), 1)
        return None
    try:
        ours = Tokenizer(folder)
    except NeoTFError as error:
        raise Difference(f"neo-tf refuses the tokenizer: {error}") from None
    _compare_vocabulary(ours, theirs)
    for _ in range(12):
        _compare_text(draw, ours, theirs)
    for _ in range(10):
        _compare_decoding(draw, ours, theirs)
    return theirs


def _compare_vocabulary(ours, theirs):
    same("vocabulary", ours.get_vocab(), theirs.get_vocab())
    same("size", (len(ours), ours.vocab_size), (len(theirs), theirs.vocab_size))
    for name in NAMES:
        for end in ("", "_id"):
            same(name + end, getattr(ours, name + end), getattr(theirs, name + end))
    for name in ("all_special_tokens", "all_special_ids", "chat_template", "model_max_length", "truncation_side"):
        same(name, getattr(ours, name), getattr(theirs, name))


def _compare_text(draw, ours, theirs):
    text = random_text(draw)
    ids = theirs(text)["input_ids"]
    same(f"ids of {text!r}", ours.encode(text), ids)
    same(f"ids of a call with {text!r}", ours(text)["input_ids"], ids)
    bare = theirs(text, add_special_tokens=False)["input_ids"]
    same(f"bare ids of {text!r}", ours.encode(text, add_special_tokens=False), bare)
    _compare_texts_of(ids, ours, theirs)


def _compare_texts_of(ids, ours, theirs):
    for skip in (True, False):
        for cleans in (None, True, False):
            text = theirs.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=cleans)
            same(f"text of {ids} ({skip}, {cleans})", ours.decode(ids, skip, cleans), text)


def _compare_decoding(draw, ours, theirs):
    size = len(theirs)
    special = theirs.all_special_ids or [0]
    ids = [draw.choice(special) if draw.random() < 0.1 else draw.randrange(size) for _ in range(draw.randrange(15))]
    ids = [index for index in ids if index is not None]
    _compare_texts_of(ids, ours, theirs)
    prompt = ours.encode(random_text(draw)) if draw.random() < 0.5 else []
    stream = ours.stream(prompt)
    pieces = [*map(stream, ids), stream.finish()]
    expected = theirs.decode(ids, skip_special_tokens=True)
    if stream.before == ours.decode(prompt, skip_special_tokens=True):  # else the prompt ends inside a character
        same(f"streamed text of {ids} after {prompt}", "".join(pieces), expected)
