"""Nothing is lost on the way: tokenizer files, special tokens, templates, generation settings and token ids."""

import json
import shutil

import pytest
from checkpoint_helpers import FORMATS, command
from conftest import TINY_PYTHON

import neo_tf
from neo_tf.errors import ConfigError, NeoTFError, OutputError
from neo_tf.runtime.tokenizer import Tokenizer

transformers = pytest.importorskip("transformers")

BPE = TINY_PYTHON / "byte-level-bpe.tokenizer.json"
IDS = {"bos_token_id": 2050, "eos_token_id": [2049, 0], "pad_token_id": 2048}
TOKENS = {"pad_token": "[PAD]", "bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
OTHER_KEYS = {
    "initializer_range": 0.5,
    "repetition_penalty": 1.25,
    "task_specific_params": {"text-generation": {"do_sample": True, "temperature": 0.9}},
    "use_cache": False,
    "summary_type": "cls_index",
}


def write(path, value):
    path.write_text(json.dumps(value), encoding="utf-8")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A model that was fine-tuned for chats, with tokens of its own and all kinds of files."""
    folder = tmp_path_factory.mktemp("source")
    config = transformers.GPTNeoConfig(
        vocab_size=2051,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        max_position_embeddings=64,
        **IDS,
    )
    transformers.GPTNeoForCausalLM(config).save_pretrained(folder)
    shutil.copy(BPE, folder / "tokenizer.json")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": "{{ messages }}", "model_max_length": 64}
    write(folder / "tokenizer_config.json", settings | TOKENS)
    write(folder / "special_tokens_map.json", TOKENS)
    write(folder / "added_tokens.json", {"[PAD]": 2048, "<|im_end|>": 2049, "<|im_start|>": 2050})
    (folder / "vocab.txt").write_bytes(b"not\r\nread \xff\n")
    (folder / "chat_template.jinja").write_bytes("{{ 'é' }}\r\n".encode())
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("rag")
    write(folder / "generation_config.json", IDS | {"temperature": 0.7, "no_repeat_ngram_size": 3, "of_nobody": [1]})
    config = json.loads((folder / "config.json").read_text("utf-8"))
    write(folder / "config.json", config | OTHER_KEYS)
    return folder


def files_of(folder):
    """The files of a model but its weights and its config, {name: content}."""
    found = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    graphs = ("model", "decoder", "prefill", "encoder")
    ours = (*graphs, "config.json", "checkpoint", "dataset.json", "genai_config.json")
    return {name: path.read_bytes() for name, path in found.items() if not name.startswith(ours)}


def keys_of(folder):
    """config.json without what says the same in other words."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    same = ("architectures", "transformers_version", "intermediate_size", "torch_dtype", "attention_layers")
    return {key: value for key, value in config.items() if key not in same}


def seen(folder):
    """What transformers sees of a folder's tokenizer."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(["a<|im_end|>", "a longer text"], padding=tokenizer.pad_token is not None)["input_ids"]
    return tokenizer.special_tokens_map, tokenizer.chat_template, ids, len(tokenizer)


@pytest.mark.parametrize("way", [*FORMATS, "keras mesh-tf", "mesh-tf keras"])
def test_a_folder_comes_back_as_it_was(source, tmp_path, way):
    held = source
    for form in way.split():
        neo_tf.convert(held, tmp_path / form, form)
        assert files_of(tmp_path / form) == files_of(source), form
        held = tmp_path / form
    neo_tf.convert(held, tmp_path / "back", "huggingface")
    assert files_of(tmp_path / "back") == files_of(source)
    assert keys_of(tmp_path / "back") == keys_of(source)
    assert seen(tmp_path / "back") == seen(source)


@pytest.mark.parametrize("kind", ["tokenizer.json alone", "vocabulary and merges", "no tokenizer"])
@pytest.mark.parametrize("form", FORMATS)
def test_a_folder_with_few_files_comes_back_as_it_was(source, tmp_path, form, kind):
    few = tmp_path / "few"
    few.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(source / name, few / name)
    if kind == "tokenizer.json alone":
        shutil.copy(BPE, few / "tokenizer.json")
    elif kind == "vocabulary and merges":
        model = json.loads(BPE.read_text("utf-8"))["model"]
        write(few / "vocab.json", model["vocab"])
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
        (few / "merges.txt").write_text("\n".join(merges) + "\n", encoding="utf-8")
    neo_tf.convert(few, tmp_path / form, form)
    neo_tf.convert(tmp_path / form, tmp_path / "back", "huggingface")
    assert files_of(tmp_path / "back") == files_of(few)
    assert keys_of(tmp_path / "back") == keys_of(few)
    neo_tf.export_onnx(few, tmp_path / "onnx")
    if kind != "no tokenizer":
        assert seen(tmp_path / "onnx") == seen(tmp_path / "few")
        assert (tmp_path / "onnx" / "tokenizer.json").is_file()  # other runtimes read nothing else


def test_an_onnx_folder_has_it_all(source, tmp_path):
    neo_tf.export_onnx(source, tmp_path / "onnx")
    assert files_of(tmp_path / "onnx") == files_of(source)
    assert seen(tmp_path / "onnx") == seen(source)
    found = json.loads((tmp_path / "onnx" / "config.json").read_text("utf-8"))
    assert {key: found[key] for key in IDS | OTHER_KEYS} == IDS | OTHER_KEYS
    genai = json.loads((tmp_path / "onnx" / "genai_config.json").read_text("utf-8"))["model"]
    assert {key: genai[key] for key in IDS} == IDS
    ours, theirs = Tokenizer(tmp_path / "onnx"), transformers.AutoTokenizer.from_pretrained(source)
    assert ours.chat_template == theirs.chat_template and ours.pad_token_id == 2048
    neo_tf.export_onnx(source, tmp_path / "onnx", force=True)  # all of it is known as neo-tf's
    (tmp_path / "onnx" / "additional_chat_templates" / "mine.txt").write_text("")
    with pytest.raises(OutputError, match="'additional_chat_templates', which neo-tf did not write"):
        neo_tf.export_onnx(source, tmp_path / "onnx", force=True)


def test_generation_settings_of_an_older_folder_become_a_file(source, tmp_path):
    """Without generation_config.json transformers reads them from config.json."""
    for name in ("config.json", "model.safetensors"):
        shutil.copy(source / name, tmp_path / name)
    neo_tf.export_onnx(tmp_path, tmp_path / "onnx")
    found = json.loads((tmp_path / "onnx" / "generation_config.json").read_text("utf-8"))
    assert found == IDS | {"repetition_penalty": 1.25, "_from_model_config": True}
    model = transformers.GPTNeoForCausalLM.from_pretrained(tmp_path)
    assert {key: getattr(model.generation_config, key) for key in found} == found


def test_a_model_without_ids_ends_its_text_as_in_transformers(source, tmp_path):
    config = json.loads((source / "config.json").read_text("utf-8"))
    kept = {key: value for key, value in config.items() if key not in IDS}
    for vocab, eos in ((50257, 50256), (2051, None)):
        found = neo_tf.GPTNeoConfig.from_huggingface(kept | {"vocab_size": vocab})
        assert found.eos_token_id == eos
        theirs = transformers.GPTNeoConfig(**kept | {"vocab_size": vocab})
        written = transformers.GPTNeoConfig(**found.to_huggingface())
        if eos is not None:
            assert (written.bos_token_id, written.eos_token_id) == (theirs.bos_token_id, theirs.eos_token_id)


def test_ids_that_were_changed_since_are_not_brought_back(source):
    config = neo_tf.open_checkpoint(source).config
    assert config.to_huggingface()["eos_token_id"] == [2049, 0]
    assert config.replace(eos_token_id=5).to_huggingface()["eos_token_id"] == 5


def test_trimming_does_not_cut_off_an_id_that_is_used(source, tmp_path):
    for name in ("config.json", "model.safetensors"):
        shutil.copy(source / name, tmp_path / name)
    with pytest.raises(ConfigError, match="to 2050: the config uses the id 2050"):
        neo_tf.open_checkpoint(tmp_path).with_vocab(2050)


def test_a_tokenizer_that_cannot_be_read_is_kept_with_a_note(source, tmp_path, capfd):
    for name in ("config.json", "model.safetensors"):
        shutil.copy(source / name, tmp_path / name)
    (tmp_path / "tokenizer.model").write_bytes(b"\x0a\x00")
    assert command("convert", tmp_path, tmp_path / "keras", "--to", "keras") == 0
    assert "note: tokenizer.model: kept, but no tokenizer" in capfd.readouterr().err.replace("\n", " ")
    assert (tmp_path / "keras" / "tokenizer.model").read_bytes() == b"\x0a\x00"


@pytest.mark.parametrize("name", ["tokenizer.model", "vocab.json", "vocab.txt"])
def test_another_tokenizer_that_cannot_be_read_is_not_replaced_by_gpt2s(source, tmp_path, name):
    from neo_tf.checkpoints.tokenizer_files import find_tokenizer

    assert "tokenizer.json" in find_tokenizer(tmp_path, 50257)
    (tmp_path / name).write_bytes(b"{}")
    assert find_tokenizer(tmp_path, 50257) == {name: b"{}"}  # it is carried on


@pytest.mark.parametrize("text", ["[1, 2]", "{", "3"])
def test_settings_of_generation_that_are_no_object_are_refused(source, tmp_path, text):
    folder = shutil.copytree(source, tmp_path / "damaged")
    (folder / "generation_config.json").write_text(text)
    for write_to in (neo_tf.convert, neo_tf.export_onnx):
        with pytest.raises(NeoTFError, match=r"generation_config\.json: "):
            write_to(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
