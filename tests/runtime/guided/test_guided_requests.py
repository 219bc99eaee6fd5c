"""What is refused, in one line that names the argument; the extra; the command, jobs and OpenAI's response_format."""

import json
import subprocess
import sys
import threading

import numpy as np
import pytest
from conftest import GOLDEN

from neo_tf.errors import MissingExtraError, RequestError
from neo_tf.runtime.guided.guide import Guide
from neo_tf.runtime.guided.mask import GrammarMask
from neo_tf.runtime.guided.response_format import guided_arguments
from neo_tf.runtime.sampling.options import SamplingOptions
from neo_tf.runtime.tokenizer import Tokenizer
from neo_tf.text_generation import pipeline

REFUSED = [
    ({"guided_regex": "(a"}, "guided_regex: unclosed group"),
    ({"guided_regex": "a(?=b)"}, "guided_regex: look-around"),
    ({"guided_regex": r"(a)\1"}, "guided_regex: backreferences are not supported"),
    ({"guided_regex": r"\bword"}, "guided_regex: lookarounds not supported"),
    ({"guided_regex": "a^b"}, "guided_regex: lookarounds not supported"),
    ({"guided_regex": "a\\"}, "guided_regex: the backslash at the end"),
    ({"guided_regex": 5}, "guided_regex must be a text"),
    ({"guided_regex": "\ud800"}, "guided_regex must be valid UTF-8"),
    ({"guided_choice": []}, "guided_choice must be a list of one or more texts"),
    ({"guided_choice": ["a", ""]}, "guided_choice must be a list of one or more texts"),
    ({"guided_choice": ["\ud800"]}, "guided_choice must be valid UTF-8"),
    ({"guided_json": "no JSON"}, "guided_json must be a JSON schema"),
    ({"guided_json": "[1]"}, "guided_json must be a JSON schema"),
    ({"guided_json": {"const": object()}}, "guided_json must hold what JSON can hold"),
    ({"guided_json": {"type": "strin"}}, "guided_json: Invalid type: strin"),
    ({"guided_json": {"not": {"type": "string"}}}, 'guided_json: Unimplemented keys: ["not"]'),
    ({"guided_json": {"type": "array", "uniqueItems": True}}, 'guided_json: Unimplemented keys: ["uniqueItems"]'),
    ({"guided_json": {"type": "string", "format": "poem"}}, "guided_json: Unknown format: poem"),
    ({"guided_json": {"$ref": "https://example.com/a.json"}}, "guided_json: Resource"),
    ({"guided_json": {"$ref": "#/$defs/none"}}, "guided_json: Pointer"),
    ({"guided_json": {"oneOf": [{"type": "integer"}, {"type": "number"}]}}, "guided_json: oneOf constraints"),
    ({"guided_json": {"x-guidance": {"lenient": True}, "not": {}}}, "guided_json: the keyword x-guidance"),
    ({"guided_json": {"properties": {"a": {"minProperties": 2}}}}, "guided_json: minProperties"),
    ({"guided_json": {"enum": []}}, "guided_json: Unsatisfiable schema"),
    ({"guided_regex": "a", "guided_choice": ["b"]}, "guided_regex and guided_choice are both given"),
    ({"guided_regex": "a", "num_beams": 2}, "guided_regex with num_beams 2"),
]


@pytest.fixture(scope="module")
def generator(demo_folder):
    return pipeline("text-generation", model=demo_folder, do_sample=False)


@pytest.mark.parametrize(("arguments", "message"), REFUSED, ids=lambda value: repr(value)[:40])
def test_what_cannot_be_kept_to_is_refused(generator, arguments, message):
    with pytest.raises(RequestError) as error:
        generator("def", **arguments)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_a_model_without_a_tokenizer_cannot_be_guided(exported):
    generator = pipeline("text-generation", model=exported(GOLDEN / "tiny-global"), do_sample=False)
    with pytest.raises(RequestError, match="tokenizer"):
        generator([1, 2], guided_regex="a", return_tensors=True)


def test_a_tokenizer_that_is_not_byte_level_is_refused():
    tokenizers = pytest.importorskip("tokenizers")
    words = Tokenizer.from_object(tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1}, "a")))
    with pytest.raises(RequestError, match="byte-level BPE"):
        words.grammar(Guide.of_regex("a"))


def test_without_the_extra_it_says_how_to_install_it(demo_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(MissingExtraError, match=r"^guided_choice needs the extra guided: pip install"):
        Tokenizer(demo_folder).grammar(Guide.of_choices(["a"]))


def test_the_library_is_imported_by_the_first_guide_alone(demo_folder):
    code = (
        "import sys; from neo_tf.text_generation import pipeline; "
        f"pipeline('text-generation', model={str(demo_folder)!r})('a', max_new_tokens=1); "
        "assert 'llguidance' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- the grammars


def test_special_padded_and_added_tokens(demo_folder):
    """Special tokens and ids above the tokenizer's never come; an added token comes by its text."""
    tokenizer = Tokenizer(demo_folder)
    known = len(tokenizer)
    tokenizer._tokenizer.add_tokens(["héllo wörld"])
    tokenizer._tokenizer.add_special_tokens(["hé"])
    grammar = tokenizer.grammar(Guide.of_regex("(?:héllo wörld){2}"))
    mask = GrammarMask(grammar, 1, [0, known + 7])
    scores = mask(np.array([[5]]), np.zeros((1, known + 10), np.float32))
    allowed = np.flatnonzero(np.isfinite(scores[0])).tolist()
    h_and_e = [tokenizer._tokenizer.token_to_id(token) for token in ("h", "hÃ", "hÃ©")]
    assert set(allowed) == {known, *(token for token in h_and_e if token is not None)}
    scores = mask(np.array([[5, known, known]]), np.zeros((1, known + 10), np.float32))
    assert np.flatnonzero(np.isfinite(scores[0])).tolist() == [0, known + 7]  # the two ends


def test_the_bytes_of_tokens_are_those_that_are_decoded(demo_folder):
    from neo_tf.checkpoints.tokenizer_files import gpt2_tokenizer
    from neo_tf.runtime.guided.token_bytes import token_bytes

    tokenizers = pytest.importorskip("tokenizers")
    gpt2 = tokenizers.Tokenizer.from_str(gpt2_tokenizer())
    gpt2.add_tokens(["<tab> ü", "Ġé"])
    found = token_bytes(gpt2)
    assert [index for index, text in enumerate(found) if text is None] == [50256]
    ids = np.random.default_rng(0).permutation(len(found))[:3000].tolist()
    spelled = b"".join(found[index] or b"" for index in ids).decode(errors="replace")
    assert spelled == gpt2.decode(ids, skip_special_tokens=True)


def test_compiled_grammars_are_kept_and_bounded(demo_folder):
    tokenizer = Tokenizer(demo_folder)
    first = tokenizer.grammar(Guide.of_regex("a"))
    assert tokenizer.grammar(Guide.of_regex("a")) is first
    for number in range(100):
        tokenizer.grammar(Guide.of_regex(f"a{number}"))
    assert tokenizer.grammar(Guide.of_regex("a")) is not first


def test_many_threads_may_compile_and_follow(demo_folder):
    tokenizer = Tokenizer(demo_folder)
    letters = {letter: tokenizer.encode(letter)[0] for letter in "abcdef"}
    failed = []

    def follow(number):
        try:
            for letter, token in letters.items():
                state = tokenizer.grammar(Guide.of_regex(f"{letter}{{3}}")).start()
                for _ in range(3):
                    assert state.allowed()[token] and not state.is_complete
                    state.add([token])
                assert state.is_complete and not state.allowed().any()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=follow, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_options_are_not_changed_by_what_the_caller_does_later(demo_folder):
    schema = {"type": "object", "properties": {"a": {"type": "null"}}}
    before = json.dumps(schema)
    assert SamplingOptions(guided_json=schema).guide and json.dumps(schema) == before


# ---- the command, jobs, and OpenAI's response_format


def run(*arguments):
    command = [sys.executable, "-m", "neo_tf", "generate", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_command_takes_a_schema_from_a_file_or_as_text(demo_folder, tmp_path):
    schema = {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 2}
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    for given in (tmp_path / "schema.json", json.dumps(schema)):
        done = run(demo_folder, "x = ", "--no-return-full-text", "--guided-json", given)
        assert done.returncode == 0, done.stderr
        assert [type(value) for value in json.loads(done.stdout)] == [bool, bool]
    done = run(demo_folder, "x = ", "--guided-json", tmp_path / "none.json")
    assert done.returncode == 1 and "none.json" in done.stderr and "Traceback" not in done.stderr


def test_a_job_has_guided_lines(demo_folder, tmp_path):
    lines = [
        {"prompt": "a", "guided_choice": ["yes", "no"]},
        {"prompt": "b"},
        {"prompt": "c", "guided_json": {"type": "null"}, "guided_choice": None},
        {"prompt": "d", "guided_choice": ["left"], "guided_regex": "right"},
    ]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    output = tmp_path / "results.jsonl"
    options = ("--no-return-full-text", "--skip-errors", "--max-new-tokens", 8)
    done = run(demo_folder, "--input", tmp_path / "prompts.jsonl", "--output", output, *options)
    assert done.returncode == 1  # one line is wrong
    results = [json.loads(line) for line in output.read_text().splitlines()]
    assert results[0]["generated_text"] in ("yes", "no") and results[0]["finish_reason"] == "stop"
    assert results[1]["finish_reason"] == "length"
    assert results[2]["generated_text"] == "null"
    assert "guided_regex and guided_choice are both given" in results[3]["error"]


def test_a_response_format_is_an_argument():
    schema = {"type": "object"}
    named = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": schema}}
    assert guided_arguments(None) == guided_arguments({"type": "text"}) == {}
    assert guided_arguments({"type": "json_object"}) == guided_arguments(named) == {"guided_json": schema}
    for wrong in ("json", {"type": "xml"}, {"type": "json_schema"}, {"type": "json_schema", "json_schema": {}}, []):
        with pytest.raises(RequestError, match=r"^response_format"):
            guided_arguments(wrong)
