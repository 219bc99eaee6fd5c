"""Tokenizers of all kinds of folders: ids, text, streamed text and special tokens are those of transformers."""

import json
import random
import shutil

import pytest
from conftest import TINY_PYTHON
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

import neo_tf
from neo_tf.errors import CheckpointError, MissingExtraError, RequestError
from neo_tf.runtime.text_pieces import CleanedPieces, clean_up
from neo_tf.runtime.tokenizer import Tokenizer

transformers = pytest.importorskip("transformers")

BPE = TINY_PYTHON / "byte-level-bpe.tokenizer.json"
END = "<|endoftext|>"
FLAGS = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
TEXTS = [
    "hello world",
    "Hello, the world's end . it is n't he 's .",
    f"  def f(x):\n\treturn 1{END}x<|im_end|> <pad>",
    "naïve nai\u0308ve 你好 🎉",
    "",
    "[CLS] hello[SEP] the cat sat on ##s the mat ' s",
]
NAMES = [f"{name}_token{end}" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask") for end in ("", "_id")]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt_neo"}')
    return tmp_path


def change(path, **values):
    known = json.loads(path.read_text("utf-8")) if path.exists() else {}
    path.write_text(json.dumps(known | values), encoding="utf-8")


def check(folder):
    """Compares the tokenizer of a folder with AutoTokenizer's."""
    theirs, ours = transformers.AutoTokenizer.from_pretrained(folder), Tokenizer(folder)
    for text in TEXTS:
        ids = theirs(text)["input_ids"]
        assert ours.encode(text) == ours(text)["input_ids"] == ids, text
        for skip in (True, False):
            assert ours.decode(ids, skip) == theirs.decode(ids, skip), text
    draw = random.Random(0)
    for _ in range(150):
        ids = [draw.randrange(len(theirs)) for _ in range(draw.randrange(14))]
        text = theirs.decode(ids, skip_special_tokens=True)
        stream = ours.stream(draw.choice([[], ours.encode("hello world")]))
        shown = ""
        for token in ids:
            shown += stream(token)
            assert text.startswith(shown)
        assert shown + stream.finish() == ours.decode(ids, skip_special_tokens=True) == text
    for name in NAMES:
        assert getattr(ours, name) == getattr(theirs, name), name
    assert (ours.all_special_tokens, ours.all_special_ids) == (theirs.all_special_tokens, theirs.all_special_ids)
    assert (len(ours), ours.vocab_size, ours.get_vocab()) == (len(theirs), theirs.vocab_size, theirs.get_vocab())
    assert ours.chat_template == theirs.chat_template
    assert ours.model_max_length == theirs.model_max_length


# ---- settings and special tokens, wherever they are declared

CLASSES = [
    *(None, "GPT2TokenizerFast", "CodeGenTokenizer", "GPTNeoXTokenizerFast"),
    *("PreTrainedTokenizerFast", "TokenizersBackend", "OfSomebodysOwn"),
    *("RobertaTokenizer", "Qwen2TokenizerFast", "LlamaTokenizer"),
]
SETTINGS = {
    "none": {},
    "special tokens that tokenizer.json does not know": {
        "eos_token": "<|im_end|>",
        "pad_token": "<pad>",
        "additional_special_tokens": ["hello"],
        "bos_token": FLAGS | {"__type": "AddedToken", "content": "<s>", "lstrip": True},
    },
    "other flags of known tokens": {
        "added_tokens_decoder": {
            "0": FLAGS | {"content": END, "special": False},
            "2048": FLAGS | {"content": "<x>", "special": True},
        }
    },
    "names of one's own": {"image_token": "hello", "extra_special_tokens": {"begin_token": "<begin>"}},
    "a prefix space": {"add_prefix_space": True},
    "a beginning of text": {"add_bos_token": True, "bos_token": END},
    "special tokens split": {"split_special_tokens": True},
    "spaces cleaned up": {"clean_up_tokenization_spaces": True, "model_max_length": 512},
    "spaces cleaned up all the same": {
        "clean_up_tokenization_spaces": True,
        "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output": True,
    },
    "a chat template": {"chat_template": "{{ messages }}"},
    "several chat templates": {"chat_template": [{"name": "default", "template": "a"}, {"name": "x", "template": "b"}]},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("kind", CLASSES)
def test_settings_of_tokenizer_config(folder, kind, settings):
    shutil.copy(BPE, folder / "tokenizer.json")
    if kind or settings:
        change(folder / "tokenizer_config.json", **settings, **({"tokenizer_class": kind} if kind else {}))
    check(folder)


def _padded(folder):
    padding = {"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None}
    padding |= {"pad_id": 1, "pad_type_id": 0, "pad_token": "<|padding|>"}
    truncation = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    change(folder / "tokenizer.json", padding=padding, truncation=truncation)


def _older_files(folder):
    values = {"eos_token": "<|im_end|>", "pad_token": FLAGS | {"content": "<pad>"}}
    change(folder / "special_tokens_map.json", **values, additional_special_tokens=["hello", "world"])
    change(folder / "added_tokens.json", **{"<|im_end|>": 2048, "<pad>": 2049, "def": 2050})


def _prefix_space(folder):
    own = json.loads(BPE.read_text("utf-8"))["pre_tokenizer"]
    change(folder / "tokenizer.json", pre_tokenizer=own | {"add_prefix_space": True})


def _begins(folder):
    begin = processors.TemplateProcessing(single=f"{END} $A", pair=None, special_tokens=[(END, 0)])
    change(folder / "tokenizer.json", post_processor=json.loads(begin.__getstate__()))


def _end_that_is_not_special(folder):
    added = json.loads(BPE.read_text("utf-8"))["added_tokens"]
    hello = FLAGS | {"id": 2048, "content": "hello", "special": False}
    change(folder / "tokenizer.json", added_tokens=[*added, hello])
    change(folder / "tokenizer_config.json", eos_token="hello")


def _template_files(folder):
    (folder / "chat_template.jinja").write_text("hi")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("rag")
    change(folder / "tokenizer_config.json", chat_template="not this one")


def _class_in_config(folder):
    change(folder / "config.json", tokenizer_class="PreTrainedTokenizerFast")
    _prefix_space(folder)


EDITS = [_padded, _older_files, _prefix_space, _begins, _end_that_is_not_special, _template_files, _class_in_config]


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("kind", CLASSES)
def test_settings_of_other_files(folder, kind, edit):
    shutil.copy(BPE, folder / "tokenizer.json")
    if kind:
        change(folder / "tokenizer_config.json", tokenizer_class=kind)
    edit(folder)
    check(folder)


def _write_vocabulary(folder):
    model = json.loads(BPE.read_text("utf-8"))["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True},
        {"add_eos_token": True, "add_prefix_space": True, "pad_token": "<pad>"},
    ],
)
def test_vocabulary_and_merges_alone(folder, settings, older):
    _write_vocabulary(folder)
    if settings:
        change(folder / "tokenizer_config.json", **settings)
    if older:
        _older_files(folder)
    check(folder)


def test_vocabulary_and_merges_of_another_class_are_refused_as_there(folder):
    for name, content in (("vocab.json", '{"a": 0}'), ("merges.txt", "")):
        (folder / name).write_text(content)
    change(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    with pytest.raises(CheckpointError, match=r"PreTrainedTokenizerFast without tokenizer\.json"):
        Tokenizer(folder)
    with pytest.raises(ValueError, match="backend tokenizer"):
        transformers.AutoTokenizer.from_pretrained(folder)


# ---- tokenizers that are not byte-level

WORDS = (
    *("hello", "world", "the", "cat", "sat", "on", "mat", "##s", ".", ",", "n't", "'s", "'", "it", "is", "he", "end"),
    *("[UNK]", "[CLS]", "[SEP]", "<|endoftext|>", "hel", "##lo", "n"),
)
VOCAB = {word: index for index, word in enumerate(WORDS)}
PIECES = [
    *(("<unk>", 0.0), ("</s>", 0.0), ("▁", -2.0), ("▁the", -2.0), ("▁hello", -2.0), ("▁world", -2.0), ("s", -2.0)),
    *((".", -2.0), ("▁.", -2.0), ("▁'", -2.0), ("l", -2.0), ("he", -2.0), ("o", -2.0), ("n't", -2.0), ("'", -2.0)),
    *(("▁n", -2.0), ("'t", -2.0)),
]


def _word_level():
    made = Backend(models.WordLevel(VOCAB, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return made


def _word_piece():
    made = Backend(models.WordPiece(VOCAB, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    ends = [("[CLS]", VOCAB["[CLS]"]), ("[SEP]", VOCAB["[SEP]"])]
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", pair=None, special_tokens=ends)
    return made


def _unigram():
    made = Backend(models.Unigram(PIECES, unk_id=0))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    return made


def _unigram_with_bytes():
    made = Backend(
        models.Unigram([*PIECES, *((f"<0x{i:02X}>", -9.0) for i in range(256))], unk_id=0, byte_fallback=True)
    )
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence(parts)
    return made


def _bpe_with_ends_of_words():
    tokens = ["<unk>", "h", "e", "l", "o</w>", "he", "hel", "hell", "hello</w>", "w", "s</w>", ".</w>", "n't</w>"]
    merges = [("h", "e"), ("he", "l"), ("hel", "l"), ("hell", "o</w>")]
    vocab = {token: index for index, token in enumerate(tokens)}
    made = Backend(models.BPE(vocab, merges, unk_token="<unk>", end_of_word_suffix="</w>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.decoder = decoders.BPEDecoder()
    return made


def _ctc():
    """Of this decoder nothing is final before the end."""
    made = _word_level()
    made.decoder = decoders.CTC(pad_token="the", word_delimiter_token="on")
    return made


KINDS = [_word_level, _word_piece, _unigram, _unigram_with_bytes, _bpe_with_ends_of_words, _ctc]


@pytest.mark.parametrize("cleans_up", [False, True])
@pytest.mark.parametrize("loaded", ["PreTrainedTokenizerFast", None])
@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds_of_tokenizers(folder, kind, loaded, cleans_up):
    """Without a tokenizer_config.json transformers makes GPT-2's kind of all of them."""
    made = kind()
    unknown = "[UNK]" if made.token_to_id("[UNK]") is not None else "<unk>"
    saved = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token=unknown, clean_up_tokenization_spaces=cleans_up
    )
    saved.save_pretrained(folder)
    if loaded is None:
        (folder / "tokenizer_config.json").unlink()
    else:
        change(folder / "tokenizer_config.json", tokenizer_class=loaded)
    check(folder)


def _bpe_with_bytes():
    """What LlamaTokenizer and GemmaTokenizer write."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *"▁helowrd", "he", "ll", "▁w", "hell"]
    merges = [("h", "e"), ("l", "l"), ("▁", "w"), ("he", "ll")]
    vocab = {token: index for index, token in enumerate(tokens)}
    made = Backend(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    made.post_processor = processors.TemplateProcessing(single="<s> $A", pair=None, special_tokens=[("<s>", 1)])
    return made


BERT, ROBERTA = {"do_lower_case": False}, {"add_prefix_space": False, "mask_token": "cat"}
REBUILT = [
    *(("BertTokenizerFast", _word_piece, settings) for settings in ({}, BERT, BERT | {"strip_accents": True})),
    *(("BertTokenizer", kind, {"cls_token": "the"}) for kind in (_word_level, _word_piece)),
    *(("DistilBertTokenizer", _word_piece, settings) for settings in ({"tokenize_chinese_chars": False}, BERT)),
    *(("XLMRobertaTokenizerFast", _unigram, settings) for settings in ({}, ROBERTA, {"eos_token": "hel"})),
    *(("LlamaTokenizerFast", kind, {}) for kind in (_bpe_with_bytes, _unigram_with_bytes)),
    *(("LlamaTokenizer", _bpe_with_bytes, {"add_prefix_space": False, "legacy": legacy}) for legacy in (True, False)),
    ("LlamaTokenizer", _bpe_with_bytes, {"legacy": True, "pad_token": "</s>"}),
    *(("GemmaTokenizer", kind, {"bos_token": "<s>"}) for kind in (_bpe_with_bytes, _unigram_with_bytes)),
    *((name, _bpe_with_ends_of_words, {}) for name in ("RobertaTokenizer", "Qwen2Tokenizer", "GPT2Tokenizer")),
]


@pytest.mark.parametrize("name, kind, settings", REBUILT, ids=lambda value: getattr(value, "__name__", str(value)))
def test_classes_that_build_the_tokenizer_anew(folder, name, kind, settings):
    kind().save(str(folder / "tokenizer.json"))
    change(folder / "tokenizer_config.json", tokenizer_class=name, **settings)
    check(folder)


@pytest.mark.parametrize("where", ["tokenizer_config.json", "config.json"])
def test_a_vocabulary_of_words_alone(folder, where):
    """As GPT-Neos in Chinese have it: BERT's class, and vocab.txt."""
    (folder / "vocab.txt").write_text("[PAD]\n" + "\n".join(WORDS) + "\n你\n好\n[MASK]\n", encoding="utf-8")
    change(folder / where, tokenizer_class="BertTokenizer")
    check(folder)


@pytest.mark.parametrize("name", ["RobertaTokenizer", "Qwen2Tokenizer"])
def test_vocabulary_and_merges_of_other_classes(folder, name):
    _write_vocabulary(folder)
    change(folder / "tokenizer_config.json", tokenizer_class=name)
    check(folder)


@pytest.mark.parametrize("name", ["T5Tokenizer", "WhisperTokenizerFast", "CamembertTokenizer", "ByT5Tokenizer"])
def test_classes_that_are_not_built_are_refused_by_name(folder, name):
    shutil.copy(BPE, folder / "tokenizer.json")
    change(folder / "tokenizer_config.json", tokenizer_class=name)
    with pytest.raises(CheckpointError, match=name):
        Tokenizer(folder)


def test_each_class_of_transformers_is_built_or_refused():
    """A class that a later version adds is named here: it must not be taken for one that nobody knows."""
    from neo_tf.tokenizer_classes import CLASSES, UNKNOWN_HERE

    known = {name.removesuffix("Fast") for name in dir(transformers) if name.endswith(("Tokenizer", "TokenizerFast"))}
    helpers = {"AutoTokenizer", "BasicTokenizer", "CharacterTokenizer", "MecabTokenizer", "WordpieceTokenizer"}
    as_it_is = {"PreTrainedTokenizer"}
    assert known - helpers - as_it_is <= CLASSES.keys() | UNKNOWN_HERE
    assert not CLASSES.keys() & UNKNOWN_HERE


@pytest.mark.parametrize(
    "names, read",
    [
        (["tokenizer.json", "tokenizer.4.0.json", "tokenizer.99.0.json"], "tokenizer.4.0.json"),
        (["tokenizer.99.0.json", "other.json"], "tokenizer.json"),
    ],
)
def test_a_tokenizer_file_for_a_version(folder, names, read):
    for name in ("tokenizer.json", *names):
        shutil.copy(BPE, folder / name)
    change(folder / "tokenizer.json", added_tokens=[])
    change(folder / "tokenizer_config.json", fast_tokenizer_files=names, tokenizer_class="PreTrainedTokenizerFast")
    check(folder)
    assert (Tokenizer(folder).encode(END) == [0]) == (read != "tokenizer.json")


def test_a_tokenizer_file_for_a_version_that_is_missing_is_named(folder):
    shutil.copy(BPE, folder / "tokenizer.json")
    change(folder / "tokenizer_config.json", fast_tokenizer_files=["tokenizer.4.0.json"])
    with pytest.raises(CheckpointError, match=r"tokenizer\.4\.0\.json: missing"):
        Tokenizer(folder)


def test_a_tokenizer_in_code_of_its_own_is_read_as_transformers_reads_it_without_trust(folder):
    shutil.copy(BPE, folder / "tokenizer.json")
    change(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["mine.Slow", None]}, add_prefix_space=True)
    check(folder)


@given(
    st.lists(
        st.sampled_from([" ", " '", "'", " n", "n", "'t", " .", ".", "s", " s", "ve", " 've", "t", "  "]), max_size=12
    )
)
def test_text_that_is_cleaned_in_pieces_is_the_text_that_is_cleaned(parts):
    class Raw:
        before = ""

        def add(self, number):
            return parts[number]

        def finish(self):
            return ""

    pieces = CleanedPieces(Raw())
    found = [*map(pieces.add, range(len(parts))), pieces.finish()]
    assert "".join(found) == clean_up("".join(parts))


def test_cleaned_text_does_not_wait_for_the_end(folder):
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=_word_level(), clean_up_tokenization_spaces=True
    ).save_pretrained(folder)
    stream = Tokenizer(folder).stream([])
    assert [stream(VOCAB[word]) for word in ("hello", ".", "the", "cat")] == ["", "hello", ".", " the"]
    assert stream.finish() == " cat"


def test_beams_find_stop_strings_that_reach_over_words(folder):
    from neo_tf.runtime.engine.request import Request
    from neo_tf.runtime.engine.stopping import stop_test

    transformers.PreTrainedTokenizerFast(tokenizer_object=_word_level()).save_pretrained(folder)
    stops = stop_test(Request([VOCAB["the"]], stop_strings=("cat sat",), tokenizer=Tokenizer(folder)))
    words = ["hello", "the", "cat", "sat"]
    assert [stops([VOCAB[word] for word in words[:end]]) for end in range(1, 5)] == [False, False, False, True]


# ---- what scripts call


@pytest.fixture
def pair(folder):
    shutil.copy(BPE, folder / "tokenizer.json")
    change(
        folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast", eos_token=END, model_max_length=9
    )
    theirs, ours = transformers.AutoTokenizer.from_pretrained(folder), Tokenizer(folder)
    theirs.padding_side = "left"  # as transformers' pipeline sets it
    return theirs, ours


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"truncation": True},
        {"truncation": True, "max_length": 2},
        {"max_length": 3},
        {"padding": True},
        {"padding": "max_length", "truncation": True, "max_length": 5},
        {"padding": "max_length"},
        {"add_special_tokens": False, "return_attention_mask": False},
    ],
)
def test_calls(pair, arguments):
    theirs, ours = pair
    for tokenizer in pair:
        tokenizer.pad_token = tokenizer.eos_token
    texts = ["def f(x):", "import os\nimport sys\nprint(os.sep, sys.path, 1, 2, 3)", "x"]
    for text in (texts, texts[1]):
        assert dict(ours(text, **arguments)) == dict(theirs(text, **arguments))
    if arguments.get("padding") is True or ("truncation" in arguments and "padding" in arguments):
        found = ours(texts, return_tensors="np", **arguments)
        assert found.input_ids.tolist() == theirs(texts, **arguments)["input_ids"]


def test_a_tokenizer_from_an_object(folder):
    shutil.copy(BPE, folder / "tokenizer.json")
    change(folder / "tokenizer_config.json", tokenizer_class="GPT2Tokenizer", add_prefix_space=True)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    theirs.pad_token = "<|padding|>"
    theirs.add_special_tokens({"eos_token": "<|im_end|>"})
    theirs("some text", padding="max_length", truncation=True, max_length=4)
    ours = Tokenizer.from_object(theirs)
    for text in TEXTS:
        assert ours.encode(text) == theirs(text)["input_ids"]
    assert (ours.eos_token_id, ours.pad_token) == (theirs.eos_token_id, "<|padding|>")
    raw = Tokenizer.from_object(Backend.from_file(str(BPE)))
    assert raw.encode(TEXTS[0]) == Tokenizer(BPE).encode(TEXTS[0])
    with pytest.raises(CheckpointError, match="not int"):
        Tokenizer.from_object(5)


def test_ids_and_tokens(pair):
    theirs, ours = pair
    ids = ours.encode("def f(x):")
    for tokens in ("def", ["def", "x", "not a token"], END):
        assert ours.convert_tokens_to_ids(tokens) == theirs.convert_tokens_to_ids(tokens)
    assert ours.tokenize("def f(x):") == theirs.tokenize("def f(x):") == ours.convert_ids_to_tokens(ids)
    assert ours.batch_decode([ids, [0, *ids]]) == theirs.batch_decode([ids, [0, *ids]])
    assert ours.decode([ids, ids], skip_special_tokens=True) == theirs.decode([ids, ids], skip_special_tokens=True)
    assert ours.decode(ids[0]) == theirs.decode(ids[0])
    ours.pad_token_id = theirs.pad_token_id = ids[0]
    assert ours.pad_token == theirs.pad_token and ours.special_tokens_map == theirs.special_tokens_map
    with pytest.raises(AttributeError, match="no attribute 'eos_tokens'"):
        _ = ours.eos_tokens


def test_what_a_call_cannot_do_is_refused(pair):
    _, ours = pair
    with pytest.raises(RequestError, match="padding needs a pad_token"):
        ours(["a", "b c"], padding=True)
    with pytest.raises(RequestError, match="different numbers of tokens"):
        ours(["a", "b c d e"], return_tensors="np")
    with pytest.raises(RequestError, match='return_tensors must be "np"'):
        ours("a", return_tensors="pt")


# ---- chats

CHAT = [{"role": "user", "content": "Hi <b>"}, {"role": "assistant", "content": "Hello. "}]
TEMPLATE = """{%- for m in messages %}
<|im_start|>{{ m['role'] }}
{% if m.role == 'assistant' %}{% generation %}{{ m.content | trim }}{% endgeneration %}{% else %}
{{ m.content }}{% endif %}{{ eos_token }}
{% endfor %}
{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}{{ messages | tojson }}{% if tools %}{{ tools }}{% endif %}"""


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"add_generation_prompt": True},
        {"continue_final_message": True},
        {"tools": [{"name": "x"}]},
        {"chat_template": "{{ messages[0].content }}{% if not messages[1] %}{% break %}{% endif %}"},
    ],
)
def test_chats(pair, arguments):
    pytest.importorskip("jinja2")
    theirs, ours = pair
    for tokenizer in pair:
        tokenizer.chat_template = TEMPLATE
    if "{% break" in arguments.get("chat_template", ""):
        arguments = {"chat_template": "{% for m in messages %}{{ m.content }}{% break %}{% endfor %}"}
    found = ours.apply_chat_template(CHAT, tokenize=False, **arguments)
    assert found == theirs.apply_chat_template(CHAT, tokenize=False, **arguments)
    assert dict(ours.apply_chat_template(CHAT, **arguments)) == dict(theirs.apply_chat_template(CHAT, **arguments))
    both = [CHAT, CHAT[:1]] if "continue_final_message" not in arguments else [CHAT, CHAT]
    ids = ours.apply_chat_template(both, return_dict=False, **arguments)
    assert ids == theirs.apply_chat_template(both, return_dict=False, **arguments)


def test_a_chat_that_cannot_be_rendered_is_refused_in_one_line(pair):
    pytest.importorskip("jinja2")
    _, ours = pair
    with pytest.raises(RequestError, match="no chat template"):
        ours.apply_chat_template(CHAT)
    for template, reason in (
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{% for %}", "the chat template refuses"),
        ("{{ ''.__class__.__mro__ }}", "the chat template refuses"),  # out of the sandbox
    ):
        with pytest.raises(RequestError, match=reason) as refused:
            ours.apply_chat_template(CHAT, chat_template=template)
        assert "\n" not in str(refused.value)
    with pytest.raises(RequestError, match="at least one message"):
        ours.apply_chat_template([], chat_template="x")


def test_without_jinja2_a_chat_is_refused(pair, monkeypatch):
    from neo_tf.runtime import chat_template

    chat_template._compiled.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "jinja2", None)
    with pytest.raises(MissingExtraError, match="needs jinja2"):
        pair[1].apply_chat_template(CHAT, chat_template="x")


# ---- the whole way, from a prompt to its text


@pytest.mark.parametrize("kind", [_word_level, _word_piece, _unigram, _unigram_with_bytes, _bpe_with_ends_of_words])
def test_a_pipeline_writes_and_streams_transformers_text(tmp_path, monkeypatch, kind):
    torch = pytest.importorskip("torch")
    monkeypatch.setenv("NEO_TF_CACHE", str(tmp_path / "cache"))
    made = kind()
    unknown = "[UNK]" if made.token_to_id("[UNK]") is not None else "<unk>"
    end = {"eos_token": "[SEP]"} if unknown == "[UNK]" else {}
    saved = transformers.PreTrainedTokenizerFast(tokenizer_object=made, unk_token=unknown, **end)
    saved.save_pretrained(tmp_path / "model")
    torch.manual_seed(1)
    config = transformers.GPTNeoConfig(
        vocab_size=len(saved) + 3,  # ids without a token
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        max_position_embeddings=64,
        initializer_range=0.5,
        bos_token_id=None,
        eos_token_id=None,
    )
    transformers.GPTNeoForCausalLM(config).save_pretrained(tmp_path / "model")
    theirs = transformers.pipeline("text-generation", model=str(tmp_path / "model"), tokenizer=str(tmp_path / "model"))
    ours = neo_tf.pipeline(model=tmp_path / "model")
    for prompt in ("hello world", "the cat sat.", "he"):
        expected = theirs(prompt, max_new_tokens=24, do_sample=False)[0]["generated_text"]
        pieces = []
        found = ours(prompt, max_new_tokens=24, do_sample=False, streamer=pieces.append)[0]["generated_text"]
        assert found == expected == prompt + "".join(pieces)
