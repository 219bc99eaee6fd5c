"""What a call says of encoding and writing its text, judged by transformers' pipeline and tokenizers."""

import json
import shutil

import pytest
from conftest import TINY_PYTHON
from pipeline_helpers import both_pipelines
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

import neo_tf
from neo_tf.errors import CheckpointError, RequestError
from neo_tf.model_cache import fingerprint, resolve_model
from neo_tf.runtime.tokenizer import Tokenizer, as_tokenizer
from neo_tf.text_generation import pipeline

transformers = pytest.importorskip("transformers")
pytest.importorskip("torch")

PROMPT = "def read_lines(path):"
TEMPLATE = (
    "{% for message in messages %}# {{ message.role }}: {{ message.content }}{{ eos_token }}\n{% endfor %}"
    "{{ tools }}{{ documents }}{{ mood }}{% if add_generation_prompt %}# assistant: {% endif %}"
)
CHAT = [{"role": "user", "content": "read a file, and then another one"}]
GREEDY = {"do_sample": False, "max_new_tokens": 6}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    where = tmp_path_factory.mktemp("huggingface") / "demo"
    neo_tf.convert(TINY_PYTHON, where, to="huggingface")
    (where / "chat_template.jinja").write_text(TEMPLATE)
    settings = json.loads((where / "tokenizer_config.json").read_text())
    (where / "tokenizer_config.json").write_text(json.dumps(settings | {"model_max_length": 40}))
    return where


@pytest.fixture(scope="module")
def pair(folder, tmp_path_factory):
    return both_pipelines(folder, tmp_path_factory.mktemp("cache"))


class Texts:
    """A dataset as torch has them: it has a length, and items by number."""

    def __len__(self):
        return 2

    def __getitem__(self, number):
        return {"text": (PROMPT, "class A:")[number]}


def rows(generator, **arguments):
    from transformers.pipelines.pt_utils import KeyDataset

    return list(generator(KeyDataset(Texts(), "text"), **arguments))


CALLS = {
    "tools": lambda x: x(CHAT, tools=[{"type": "function", "function": {"name": "f"}}], **GREEDY),
    "documents": lambda x: x(CHAT, documents=[{"title": "a", "text": "b"}], **GREEDY),
    "variables of the template": lambda x: x(CHAT, tokenizer_encode_kwargs={"mood": "glad"}, **GREEDY),
    "a chat that is cut": lambda x: x(CHAT, truncation=True, max_length=5, **GREEDY),
    "a chat that max_length cuts not": lambda x: x(CHAT, max_length=5, **GREEDY),
    "a chat that is cut by other arguments": lambda x: x(
        CHAT, tokenizer_encode_kwargs={"truncation": True, "max_length": 4}, **GREEDY
    ),
    "a text that is cut": lambda x: x(
        "x = 1\n" * 9, tokenizer_encode_kwargs={"truncation": True, "max_length": 7}, **GREEDY
    ),
    "a text that is cut to the tokenizer's limit": lambda x: x(
        "x = 1\n" * 30, tokenizer_encode_kwargs={"truncation": True}, **GREEDY
    ),
    "a text that is cut after all": lambda x: x(
        "x = 1\n" * 9, truncation=False, tokenizer_encode_kwargs={"truncation": True, "max_length": 7}, **GREEDY
    ),
    "a text that is not cut": lambda x: x(
        "x = 1\n" * 9, max_length=7, tokenizer_encode_kwargs={"truncation": False}, **GREEDY
    ),
    "hole": lambda x: x("x = 1\ny = 2\n" * 20, handle_long_generation="hole", **GREEDY),
    "a dataset": lambda x: rows(x, **GREEDY),
    "generators": lambda x: list(x((text for text in (PROMPT, "class A:", "x")), **GREEDY)),
    "generation_config's ids": lambda x: [
        x.model.generation_config.eos_token_id,
        x.model.generation_config.bos_token_id,
    ],
    "a tokenizer's calls": lambda x: [
        x.tokenizer.is_fast,
        x.tokenizer.get_added_vocab(),
        x.tokenizer.convert_tokens_to_string(x.tokenizer.tokenize(PROMPT)),
    ],
}


@pytest.mark.filterwarnings("ignore:.*are both set")
@pytest.mark.parametrize("name", CALLS)
def test_a_call_is_as_in_transformers(pair, name):
    ours, theirs = pair
    assert CALLS[name](ours) == CALLS[name](theirs)


def test_a_generator_is_taken_in_batches(pair):
    texts = [PROMPT, "class A:", "x"]
    expected = pair[0](texts, **GREEDY)
    taken = pair[0](iter(texts), batch_size=2, **GREEDY)
    assert next(taken) == expected[0]
    assert [*taken] == expected[1:]


def test_what_cannot_be_served_is_refused(pair):
    for arguments, message in (
        ({"tokenizer_encode_kwargs": {"stride": 3}}, "stride"),
        ({"tokenizer_encode_kwargs": 3}, "tokenizer_encode_kwargs must be"),
        ({"handle_long_generation": "hole", "max_new_tokens": 45}, "no room"),
    ):
        with pytest.raises(RequestError, match=message):
            pair[0]("x = 1\n" * 9, **{"do_sample": False, "max_new_tokens": 3} | arguments)
    with pytest.raises(RequestError, match="tools must be a list of dicts"):
        pair[0](CHAT, tools=[print])


# ---- writing


WORDS = ("[UNK]", "<end>", "the", "cat", "##s", ".", "'", "s", "n't", "is", "it")


@pytest.fixture(scope="module", params=["WordPiece", "WordLevel", "ByteLevel"])
def words(request, tmp_path_factory):
    """transformers' tokenizer of a folder, and ours."""
    where = tmp_path_factory.mktemp("words")
    if request.param == "ByteLevel":
        made = Backend.from_file(str(TINY_PYTHON / "byte-level-bpe.tokenizer.json"))
    else:
        vocab = {word: number for number, word in enumerate(WORDS)}
        made = Backend(getattr(models, request.param)(vocab, unk_token="[UNK]"))
        made.pre_tokenizer = pre_tokenizers.Whitespace()
        if request.param == "WordPiece":
            made.decoder = decoders.WordPiece(cleanup=False)
    transformers.PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>").save_pretrained(where)
    (where / "config.json").write_text('{"model_type": "gpt_neo"}')
    return transformers.AutoTokenizer.from_pretrained(where), Tokenizer(where)


@pytest.mark.parametrize("skips", [True, False])
@pytest.mark.parametrize("cleans", [True, False, None])
def test_pieces_of_a_stream_are_what_the_call_asks_for(words, skips, cleans):
    theirs, ours = words
    end = theirs.eos_token_id
    for ids in ([2, 3, 5, end, 9, 8, end], [end, 2, 4, 6, 7], [end], [10, 6, 7, 5, 5]):
        expected = theirs.decode(ids, skip_special_tokens=skips, clean_up_tokenization_spaces=cleans)
        how = {"skip_special_tokens": skips, "clean_up_tokenization_spaces": cleans}
        stream = ours.stream([2], **how)
        assert "".join([*map(stream, ids), stream.finish()]) == ours.decode(ids, **how) == expected


def test_a_special_token_that_ends_a_text_streams_where_it_is_asked_for(pair):
    ours, theirs = pair
    end = ours(PROMPT, return_tensors=True, return_full_text=False, **GREEDY)[0]["generated_token_ids"][3]
    token = ours.tokenizer.convert_ids_to_tokens(end)
    for skips in (True, False):
        arguments = {"eos_token_id": end, "skip_special_tokens": skips} | GREEDY
        heard = []
        expected = theirs(PROMPT, **arguments)
        assert ours(PROMPT, streamer=heard.append, **arguments) == expected
        assert PROMPT + "".join(heard) == expected[0]["generated_text"]
    assert token not in ours.tokenizer.all_special_tokens  # an end that is not special is written in any case


def test_a_text_that_ends_before_a_stop_string_does_so_with_special_tokens_too(pair):
    stop = {"stop_strings": ["\n"], "include_stop_str_in_output": False, "skip_special_tokens": False}
    (found,) = pair[0](PROMPT, do_sample=False, max_new_tokens=30, return_full_text=False, **stop)
    assert "\n" not in found["generated_text"]


# ---- tokenizers and adapters by other names


def test_an_object_is_what_it_is_whatever_its_class_would_make_of_a_folder():
    """A T5Tokenizer is not built from a folder; an object of that class is there already."""
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), ("▁the", -2.0), ("c", -3.0), ("at", -3.0)]
    theirs = transformers.T5Tokenizer(vocab=vocab, extra_ids=2)
    ours = as_tokenizer(theirs)
    assert ours.encode("the cat") == theirs("the cat")["input_ids"]
    assert (ours.eos_token_id, ours.pad_token_id) == (theirs.eos_token_id, theirs.pad_token_id)


def test_a_tokenizer_by_hub_id(folder, monkeypatch, pair):
    asked = []

    def download(name, revision, allow_patterns, local_files_only):
        asked.append((name, revision, local_files_only))
        if not local_files_only:
            raise OSError("offline")
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    ours = pipeline("text-generation", model=resolve_model(folder), tokenizer="somebody/words", revision="v2")
    assert ours(PROMPT, **GREEDY) == pair[0](PROMPT, **GREEDY)
    assert asked == [("somebody/words", "v2", False), ("somebody/words", "v2", True)]

    def refuse(*names, **more):
        raise OSError("offline")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(CheckpointError, match="somebody/words: no such tokenizer"):
        pipeline("text-generation", model=resolve_model(folder), tokenizer="somebody/words")


def test_the_cache_notices_what_changes_beside_the_weights(tmp_path):
    (tmp_path / "additional_chat_templates").mkdir()
    template = tmp_path / "additional_chat_templates" / "rag.jinja"
    template.write_text("a")
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "tokenizer.json").write_text("{}")
    seen = {fingerprint(tmp_path, tmp_path / "words")}
    template.write_text("ab")
    seen.add(fingerprint(tmp_path, tmp_path / "words"))
    (tmp_path / "words" / "tokenizer.json").write_text("{} ")
    seen.add(fingerprint(tmp_path, tmp_path / "words"))
    assert len(seen) == 3


def test_an_adapter_is_merged_where_the_pipeline_is_given_one(tmp_path, monkeypatch):
    import numpy as np
    from conftest import FIXTURES

    monkeypatch.setenv("NEO_TF_CACHE", str(tmp_path))
    lora = FIXTURES / "lora"
    expected = np.load(lora / "plain" / "logits.npy")
    ours = pipeline("text-generation", model=lora / "base", adapter=lora / "plain")
    without = pipeline("text-generation", model=lora / "base")
    call = {"return_tensors": True, "do_sample": False, "max_new_tokens": 1, "output_logits": True}
    prompt = (np.arange(8) * 7 % 32).tolist()  # those of the fixture
    found = [one(prompt, **call)[0]["logits"][0] for one in (ours, without)]
    assert np.abs(found[0] - expected[7]).max() < 1e-4
    assert np.abs(found[1] - expected[7]).max() > 1e-2
    with pytest.raises(RequestError, match="no adapter can be merged into"):
        pipeline("text-generation", model=resolve_model(lora / "base"), adapter=lora / "plain")


def test_a_tokenizer_in_code_of_its_own_is_not_run(folder, monkeypatch, tmp_path):
    monkeypatch.setenv("NEO_TF_CACHE", str(tmp_path / "cache"))
    shutil.copytree(folder, tmp_path / "model")
    settings = json.loads((folder / "tokenizer_config.json").read_text()) | {
        "auto_map": {"AutoTokenizer": ["a.B", None]}
    }
    (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(RequestError, match="auto_map"):
        pipeline("text-generation", model=tmp_path / "model", trust_remote_code=True)
    assert pipeline("text-generation", model=tmp_path / "model")(PROMPT, **GREEDY)


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_half_precision_without_cuda_is_computed_in_fp32_with_a_note(folder, pair, monkeypatch, caplog, name):
    monkeypatch.setattr("neo_tf.text_generation.is_for_cuda", lambda device: False)
    ours = pipeline("text-generation", model=folder, torch_dtype=name)
    assert ours.session.precision == "fp32" and "the CPU computes in fp32" in caplog.text
    assert ours(PROMPT, **GREEDY) == pair[0](PROMPT, **GREEDY)
