"""One small folder for each kind of difference that random folders showed."""

import json
import random
import shutil

import pytest
import torch
import transformers
from conftest import TINY_PYTHON
from judge_tokenizer import check_tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

import neo_tf

BPE = TINY_PYTHON / "byte-level-bpe.tokenizer.json"
OBJECT = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False, "__type": "AddedToken"}


def write(path, value):
    path.write_text(json.dumps(value), encoding="utf-8")


@pytest.fixture
def folder(tmp_path):
    """A folder with the demo model's tokenizer."""
    made = tmp_path / "model"
    made.mkdir()
    write(made / "config.json", {"model_type": "gpt_neo"})
    shutil.copy(BPE, made / "tokenizer.json")
    return made


def add_model(folder, n_vocab=2052, **keys):
    """Adds a small model without ids but those in `keys`, and without a generation_config.json."""
    sizes = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "max_position_embeddings": 64}
    shape = sizes | {"vocab_size": n_vocab, "attention_types": [[["global", "local"], 1]]}
    torch.manual_seed(0)
    model = transformers.GPTNeoForCausalLM(transformers.GPTNeoConfig(**shape))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.5)
        if n_vocab > 50256:  # the default end is the most likely token
            model.transformer.ln_f.bias.fill_(1)
            model.transformer.wte.weight[50256] = 3
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink()
    write(folder / "config.json", {"model_type": "gpt_neo"} | shape | keys)


def both(folder, monkeypatch):
    monkeypatch.setenv("NEO_TF_CACHE", str(folder.parent / "cache"))
    theirs = transformers.pipeline("text-generation", model=str(folder), dtype=torch.float32)
    return neo_tf.pipeline(model=folder), theirs


@pytest.mark.parametrize(
    "config, special",
    [
        # A name of one's own stands beside lists of tokens that have no name.
        ({"extra_special_tokens": {"image_token": "<i>"}}, {"additional_special_tokens": ["<a>", "<b>"]}),
        ({"extra_special_tokens": {"image_token": "<i>"}, "additional_special_tokens": ["<a>"]}, None),
        ({"extra_special_tokens": {"image_token": "<i>"}}, {"extra_special_tokens": ["<a>"], "pad_token": "<p>"}),
        ({"image_token": "<i>", "tokenizer_class": "PreTrainedTokenizerFast"}, {"audio_token": {"content": "<x>"}}),
        ({}, {"extra_special_tokens": {"image_token": "<i>"}}),
    ],
)
def test_names_of_ones_own_beside_lists(folder, config, special):
    write(folder / "tokenizer_config.json", config)
    if special is not None:
        write(folder / "special_tokens_map.json", special)
    assert check_tokenizer(random.Random(0), folder)


def test_an_object_in_a_list_does_not_make_an_older_added_token_special(folder):
    write(folder / "tokenizer_config.json", {"additional_special_tokens": [OBJECT | {"content": "<a>"}]})
    write(folder / "added_tokens.json", {"<a>": 2048})
    theirs = check_tokenizer(random.Random(0), folder)
    assert theirs.decode([2048], skip_special_tokens=True) == "<a>"


@pytest.mark.parametrize("kind", ["GPT2Tokenizer", "PreTrainedTokenizerFast"])
def test_the_side_of_a_truncation_that_was_saved(folder, kind):
    made = Tokenizer.from_file(str(folder / "tokenizer.json"))
    made.enable_truncation(4, direction="left")
    made.save(str(folder / "tokenizer.json"))
    write(folder / "tokenizer_config.json", {"tokenizer_class": kind})
    assert check_tokenizer(random.Random(0), folder).truncation_side == "left"


def test_a_call_cleans_up_where_the_settings_allow_it_for_bpe(folder):
    name = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"
    write(folder / "tokenizer_config.json", {name: True})
    theirs = check_tokenizer(random.Random(0), folder)
    assert theirs.decode(theirs("it .")["input_ids"], clean_up_tokenization_spaces=True) == "it."


def test_a_special_token_that_the_normalizer_changes_is_streamed_as_it_is_decoded(folder):
    made = Tokenizer(models.WordLevel({"[UNK]": 0, "cat": 1}, unk_token="[UNK]"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_tokens([AddedToken("[SEP]", normalized=True, special=True)])
    made.save(str(folder / "tokenizer.json"))
    write(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
    theirs = check_tokenizer(random.Random(0), folder)
    stream = neo_tf.runtime.tokenizer.Tokenizer(folder).stream([])
    assert "".join([stream(1), stream(2), stream.finish()]) == theirs.decode([1, 2], skip_special_tokens=True)


def test_a_text_that_is_no_token_begins_as_an_empty_one(folder, monkeypatch):
    """The token that is put there shows, and may be a part of the first character."""
    made = Tokenizer.from_file(str(folder / "tokenizer.json"))
    made.normalizer = normalizers.Replace("é", "")
    made.decoder = decoders.ByteLevel()
    made.save(str(folder / "tokenizer.json"))
    write(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
    begin = made.get_vocab()["Ã"]  # the first byte of two
    add_model(folder, bos_token_id=begin, eos_token_id=None)
    ours, theirs = both(folder, monkeypatch)
    for text in ("é", ""):
        for call in ({}, {"return_full_text": False}, {"skip_special_tokens": False}):
            call = {"do_sample": False, "max_new_tokens": 4} | call
            assert ours(text, **call) == theirs(text, **call)


def test_where_config_json_leaves_out_the_end_no_token_ends_a_text(folder, monkeypatch):
    """The config's default of 50256 is none of generation."""
    add_model(folder, 50300)
    ours, theirs = both(folder, monkeypatch)
    call = {"do_sample": False, "max_new_tokens": 4, "return_tensors": True}
    assert ours("def", **call) == theirs("def", **call)
    assert ours("def", **call)[0]["generated_token_ids"][-4:] == [50256] * 4


@pytest.mark.parametrize("keys", [{}, {"eos_token_id": None, "bos_token_id": None}, {"eos_token_id": 7}], ids=str)
@pytest.mark.parametrize("form", ["keras", "mesh-tf", "huggingface"])
@pytest.mark.parametrize("n_vocab", [2052, 50300])
def test_ids_come_back_as_they_were(folder, tmp_path, keys, form, n_vocab):
    add_model(folder, n_vocab, pad_token_id=5, **keys)
    neo_tf.convert(folder, tmp_path / "held", form)
    neo_tf.convert(tmp_path / "held", tmp_path / "back", "huggingface")
    names = ("eos_token_id", "bos_token_id", "pad_token_id")
    found, expected = (json.loads((each / "config.json").read_text()) for each in (tmp_path / "back", folder))
    if "eos_token_id" in keys and "bos_token_id" not in keys:
        assert found.pop("bos_token_id", None) in (None, 50256)  # transformers' default
    assert {name: found[name] for name in names if name in found} == {
        name: expected[name] for name in names if name in expected
    }


@pytest.mark.parametrize("kind", ["GPT2Tokenizer", "GPTNeoXTokenizer"])
def test_ends_around_a_text_of_vocabulary_and_merges_are_exported(folder, tmp_path, kind):
    model = json.loads(BPE.read_text("utf-8"))["model"]
    (folder / "tokenizer.json").unlink()
    write(folder / "vocab.json", model["vocab"])
    (folder / "merges.txt").write_text("\n".join(" ".join(pair) for pair in model["merges"]), encoding="utf-8")
    settings = {"tokenizer_class": kind, "add_bos_token": True, "add_eos_token": True, "bos_token": "<s>"}
    write(folder / "tokenizer_config.json", settings)
    add_model(folder)
    neo_tf.export_onnx(folder, tmp_path / "onnx")
    expected = transformers.AutoTokenizer.from_pretrained(folder)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "onnx")
    ours = neo_tf.runtime.tokenizer.Tokenizer(tmp_path / "onnx")
    ids = expected("def f(x):")["input_ids"]
    assert ids[0] == expected.bos_token_id and ids[-1] == expected.eos_token_id
    assert theirs("def f(x):")["input_ids"] == ours.encode("def f(x):") == ids
    assert theirs.special_tokens_map == expected.special_tokens_map


@pytest.mark.parametrize("prefix_space", [False, True])
@pytest.mark.parametrize("prompt", ["caf\u00e9 \ufffd", "\ufffd\ufffd", "a\ufffd"])
def test_a_mark_that_the_prompts_author_wrote_is_not_written_again(folder, monkeypatch, prefix_space, prompt):
    write(folder / "tokenizer_config.json", {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": prefix_space})
    add_model(folder)
    ours, theirs = both(folder, monkeypatch)
    call = {"do_sample": False, "max_new_tokens": 5, "return_full_text": False}
    assert ours(prompt, **call) == theirs(prompt, **call)
    pieces = []
    (text,) = ours(prompt, **call, streamer=pieces.append)
    assert "".join(pieces) == text["generated_text"]


def test_a_character_that_lost_bytes_is_not_written_again(folder, monkeypatch):
    """The vocabulary has the first byte of an accented letter and not the second one."""
    tokens = [chr(code) for code in range(0x21, 0x7F)] + ["\u0120", "\u00c3"]
    bpe = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.save(str(folder / "tokenizer.json"))
    write(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
    add_model(folder, n_vocab=len(tokens))
    ours, theirs = both(folder, monkeypatch)
    call = {"do_sample": False, "max_new_tokens": 5, "return_full_text": False}
    assert "\ufffd" in theirs.tokenizer.decode(theirs.tokenizer("caf\u00e9")["input_ids"])
    pieces = []
    (text,) = ours("caf\u00e9", **call, streamer=pieces.append)
    assert [text] == theirs("caf\u00e9", **call) and "".join(pieces) == text["generated_text"]
