"""What a model's generation_config.json and config.json say of generation: transformers' pipeline is the judge."""

import json
import shutil

import pytest
from conftest import TINY_PYTHON

import neo_tf
from neo_tf.cli import main
from neo_tf.errors import ConfigError, RequestError
from neo_tf.runtime.generation_config import read_generation_config
from neo_tf.text_generation import pipeline

PROMPT = "def read_lines(path):"
NO_TOKEN = 60000  # outside of the demo's vocabulary
GREEDY = {"do_sample": False, "max_new_tokens": 12}
# {case: generation_config.json}
SETTINGS = {
    "nothing, not even an end": {},
    "one end": {"eos_token_id": 223},
    "several ends": {"eos_token_id": [0, 199, 365, 341]},
    "an end outside the vocabulary": {"eos_token_id": [NO_TOKEN, 341]},
    "penalties": {"repetition_penalty": 1.8, "no_repeat_ngram_size": 2},
    "a length": {"max_length": 14, "do_sample": False},
    "a number of new tokens": {"max_new_tokens": 4},
    "both limits": {"max_length": 30, "max_new_tokens": 5},
    "a least length": {"min_length": 30, "eos_token_id": [0, 199, 365, 341]},
    "both least lengths": {"min_new_tokens": 3, "min_length": 40, "eos_token_id": [0, 199, 365, 341]},
    "beams": {"num_beams": 3, "length_penalty": 0.5, "early_stopping": True, "do_sample": False},
    "several sequences": {"num_beams": 3, "num_return_sequences": 2, "do_sample": False},
    "sampling that is off": {"do_sample": False, "temperature": 0.0, "top_p": 0.5, "top_k": 3, "min_p": 0.1},
    "beams that are off": {"length_penalty": 2.0, "early_stopping": True},
    "suppressed tokens": {"suppress_tokens": [267, NO_TOKEN], "bad_words_ids": [[199, 365], [341]]},
    "a forced end": {"forced_eos_token_id": 0, "eos_token_id": 0},
    "a decay": {"exponential_decay_length_penalty": [3, 1.5], "eos_token_id": 0},
    "biases": {"sequence_bias": [[[267], -5.0], [[365, 341], 3.0]]},
    "what changes no text": {"use_cache": True, "cache_implementation": None, "output_scores": True, "foo": 1},
}
CALLS = [
    GREEDY,
    {"do_sample": False, "max_length": 20},
    {"do_sample": False, "max_length": 14, "prefix": "import os\n"},
    GREEDY | {"repetition_penalty": None, "no_repeat_ngram_size": None},
    GREEDY | {"eos_token_id": None},
    {"do_sample": False, "max_new_tokens": None},
    GREEDY | {"num_beams": 1, "num_return_sequences": 1, "return_full_text": False},
]


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """The demo model as a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("huggingface") / "demo"
    neo_tf.convert(TINY_PYTHON, folder, to="huggingface")
    return folder


@pytest.fixture
def model(converted, tmp_path, monkeypatch):
    """A function that makes a folder with a generation_config.json (None: without), and changes in config.json."""
    monkeypatch.setenv("NEO_TF_CACHE", str(tmp_path / "cache"))

    def make(settings, **changes):
        folder = tmp_path / "model"
        shutil.copytree(converted, folder)
        path, config = folder / "generation_config.json", json.loads((folder / "config.json").read_text())
        if settings is not None:
            path.write_text(json.dumps(settings))
        elif path.exists():
            path.unlink()
        kept = {name: value for name, value in (config | changes).items() if value is not None}
        (folder / "config.json").write_text(json.dumps(kept))
        return folder

    return make


def both(folder):
    """neo-tf's pipeline and transformers' over a folder."""
    transformers = pytest.importorskip("transformers")
    return pipeline("text-generation", model=folder), transformers.pipeline("text-generation", model=str(folder))


@pytest.fixture(scope="module")
def pair(converted, demo_folder):
    """Both pipelines over the demo model."""
    transformers = pytest.importorskip("transformers")
    ours = pipeline("text-generation", model=demo_folder)
    return ours, transformers.pipeline("text-generation", model=str(converted))


@pytest.fixture
def with_settings(pair, tmp_path, monkeypatch):
    """A function that gives both pipelines a generation_config.json."""

    def give(settings):
        ours, theirs = pair
        (tmp_path / "generation_config.json").write_text(json.dumps(settings))
        monkeypatch.setattr(ours, "settings", read_generation_config(tmp_path, ours.config))
        config = type(theirs.model.generation_config).from_pretrained(tmp_path)
        monkeypatch.setattr(theirs.model, "generation_config", config)
        return ours, theirs

    return give


@pytest.mark.parametrize("case", SETTINGS)
def test_texts_are_transformers(with_settings, case):
    ours, theirs = with_settings(SETTINGS[case])
    for prompt, arguments in [*((PROMPT, call) for call in CALLS), ("", GREEDY)]:
        try:
            expected = theirs(prompt, **arguments)
        except (ValueError, RuntimeError):  # an empty text without a token to begin with, a penalty of no ends
            with pytest.raises(RequestError):
                ours(prompt, **arguments)
            continue
        assert ours(prompt, **arguments) == expected, (arguments, prompt)


@pytest.mark.parametrize(
    "keys",
    [
        {"eos_token_id": [0, 199, 365, 341]},
        {"repetition_penalty": 1.6, "max_length": 25, "do_sample": False},
        {"task_specific_params": {"text-generation": {"do_sample": False, "max_length": 12, "num_beams": 2}}},
        {"prefix": "import os\n", "num_beams": 2, "do_sample": False},
        {"eos_token_id": None, "bos_token_id": None},
    ],
    ids=str,
)
def test_older_keys_of_config_json_count_as_in_transformers(model, keys):
    """task_specific_params never do."""
    check_both(*both(model(None, **keys)))


def test_older_keys_do_not_count_beside_generation_config_json(model):
    """But for `prefix`, which is the pipeline's."""
    keys = {"repetition_penalty": 1.6, "max_length": 25, "num_beams": 2, "prefix": "import os\n"}
    check_both(*both(model({"eos_token_id": 0, "no_repeat_ngram_size": 3}, **keys)))


def check_both(ours, theirs):
    for arguments in ({"do_sample": False, "max_new_tokens": 20}, {"do_sample": False}):
        expected = theirs(PROMPT, **arguments)
        assert ours(PROMPT, **arguments) == expected


@pytest.mark.parametrize(
    "settings", [{}, {"do_sample": False}, {"temperature": 0.5, "top_p": 0.9}, {"top_k": 7}], ids=str
)
def test_what_is_drawn_with_is_as_in_transformers(with_settings, settings):
    ours, theirs = with_settings(settings)
    for arguments in ({}, {"do_sample": True}, {"temperature": 1.5}, {"top_k": None}, {"do_sample": False}):
        options = ours.arguments(arguments).sampling
        its, _ = theirs.model._prepare_generation_config(None, **theirs._prepare_generate_kwargs(dict(arguments)))
        assert options.do_sample == bool(its.do_sample)
        if options.do_sample:
            found = (options.temperature, options.top_k, options.top_p)
            assert found == (its.temperature, its.top_k or 0, its.top_p), arguments


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"guidance_scale": 1.5}, "generation_config.json: guidance_scale 1.5 changes the text"),
        ({"watermarking_config": {"bias": 2.0}}, "watermarking_config"),
        ({"do_sample": True, "temperature": -1}, "generation_config.json: temperature must be greater than 0"),
        ({"eos_token_id": "end"}, "generation_config.json: eos_token_id must be"),
        (["eos"], "must be a JSON object"),
    ],
    ids=str,
)
def test_a_setting_that_cannot_be_served_is_named(pair, tmp_path, monkeypatch, settings, message):
    ours, _ = pair
    (tmp_path / "generation_config.json").write_text(json.dumps(settings))
    with pytest.raises((ConfigError, RequestError), match=message) as error:
        monkeypatch.setattr(ours, "settings", read_generation_config(tmp_path, ours.config))
        ours(PROMPT, max_new_tokens=2)
    assert "\n" not in str(error.value)
    if "guidance_scale" in settings:  # None switches it off
        assert ours(PROMPT, max_new_tokens=2, guidance_scale=None)


def command(monkeypatch, capsys, *arguments):
    monkeypatch.setattr("sys.argv", ["neo-tf", "generate", *map(str, arguments)])
    with pytest.raises(SystemExit):
        main()
    return capsys.readouterr().out


def test_the_command_and_jobs_follow_the_settings(model, monkeypatch, capsys, tmp_path):
    settings = {
        "bos_token_id": 0,
        "eos_token_id": [0, 341],
        "repetition_penalty": 1.3,
        "num_beams": 2,
        "length_penalty": 0.5,
    }
    folder = model(settings)
    _, theirs = both(folder)
    (expected,) = theirs(PROMPT, do_sample=False, max_new_tokens=15)
    text = command(monkeypatch, capsys, folder, PROMPT, "--max-new-tokens", 15)
    assert text == expected["generated_text"] + "\n"
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": PROMPT}) + '\n{"prompt": "", "num_beams": 1}\n')
    lines = command(monkeypatch, capsys, folder, "--input", tmp_path / "p.jsonl", "--max-new-tokens", 15).splitlines()
    (begun,) = theirs("", do_sample=False, max_new_tokens=15, num_beams=1)
    assert [json.loads(line)["generated_text"] for line in lines] == [
        expected["generated_text"],
        begun["generated_text"],
    ]


def test_the_command_draws_where_the_model_says_so(model, monkeypatch, capsys):
    folder = model({"do_sample": True, "temperature": 1.4, "top_k": 20, "eos_token_id": 0})
    ours = pipeline("text-generation", model=folder)
    (drawn,) = ours(PROMPT, seed=3, max_new_tokens=15)
    (greedy,) = ours(PROMPT, do_sample=False, max_new_tokens=15)
    options = (folder, PROMPT, "--max-new-tokens", 15)
    assert command(monkeypatch, capsys, *options, "--seed", 3) == drawn["generated_text"] + "\n"
    assert command(monkeypatch, capsys, *options, "--no-do-sample") == greedy["generated_text"] + "\n" != drawn
    (cooler,) = ours(PROMPT, seed=3, max_new_tokens=15, temperature=0.5)
    found = command(monkeypatch, capsys, *options, "--seed", 3, "--temperature", 0.5)
    assert found == cooler["generated_text"] + "\n"
