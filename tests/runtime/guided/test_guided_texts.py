"""Guided texts of the demo model, whose own texts are arbitrary: each keeps to what was asked for."""

import json
import re

import jsonschema
import numpy as np
import pytest

from neo_tf.errors import RequestError
from neo_tf.runtime.device.session import Session
from neo_tf.runtime.engine.engine import Engine
from neo_tf.runtime.engine.request import Request
from neo_tf.runtime.engine.service import Service
from neo_tf.runtime.sampling.options import SamplingOptions
from neo_tf.runtime.tokenizer import Tokenizer
from neo_tf.text_generation import pipeline

PROMPT = "def read_lines(path):\n    "
PATTERNS = [
    r"[a-z]{3,8}@example\.com",
    r"(yes|no)( and (yes|no)){0,3}",
    r"\d{4}-\d{2}-\d{2}T[0-9:/]{5}\n?",
    r"^[^\x00-\x7f]{2,4}$",  # characters of several bytes, most of which are tokens of their own here
    r"(?i)é|naïve|日本語|😀+!",
]
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b", "ü"]}, "minItems": 1, "maxItems": 3},
        "parent": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/name"}]},
    },
    "required": ["name", "age", "tags", "parent"],
    "additionalProperties": False,
    "$defs": {"name": {"type": "string", "pattern": "^[A-Z][a-z]{1,5}$"}},
}
SCHEMAS = [
    PERSON,
    {"type": "array", "prefixItems": [{"type": "boolean"}, {"type": "number", "minimum": -2.5, "exclusiveMaximum": 3}]}
    | {"items": False, "minItems": 2},
    {"allOf": [{"type": "object", "properties": {"a": {"const": 'é"\\'}}, "required": ["a"]}, {"maxProperties": 1}]},
]
CHOICES = ["yes", "no", "no way", "perhaps é", "日本", "日曜", "😀", "a.b|c*(d)[e]{2}\\/\n-^$ #&~"]
LONG_ENOUGH = 160  # tokens


@pytest.fixture(scope="module")
def generator(demo_folder):
    return pipeline("text-generation", model=demo_folder, batch_size=4, return_full_text=False)


@pytest.fixture(scope="module")
def session(demo_folder):
    return Session(demo_folder, slots=4)


@pytest.fixture(scope="module")
def tokenizer(demo_folder):
    return Tokenizer(demo_folder)


def texts_of(generator, **arguments):
    """The most likely text, and some that are drawn."""
    arguments = {"max_new_tokens": LONG_ENOUGH, **arguments}
    found = generator(PROMPT, do_sample=False, **arguments)
    found += generator(PROMPT, temperature=1.5, top_k=0, seed=1, num_return_sequences=6, **arguments)
    return [result["generated_text"] for result in found]


# ---- each text keeps to it


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_text_matches_the_regular_expression(generator, pattern):
    texts = texts_of(generator, guided_regex=pattern)
    assert all(re.fullmatch(pattern, text) for text in texts), texts


@pytest.mark.parametrize("schema", SCHEMAS, ids=json.dumps)
def test_json_keeps_to_its_schema(generator, schema):
    for text in texts_of(generator, guided_json=schema):
        assert "\n" not in text
        jsonschema.validate(json.loads(text), schema)


def test_a_schema_may_be_given_as_its_text(generator):
    assert texts_of(generator, guided_json=json.dumps(PERSON)) == texts_of(generator, guided_json=PERSON)


def test_a_text_is_one_of_the_choices(generator):
    texts = texts_of(generator, guided_choice=CHOICES)
    assert set(texts) <= set(CHOICES) and len(set(texts)) > 1


@pytest.mark.parametrize("choice", CHOICES)
def test_each_choice_can_be_written(generator, choice):
    """Characters that are split across tokens, and those that mean something in regular expressions."""
    assert generator(PROMPT, do_sample=False, guided_choice=[choice])[0]["generated_text"] == choice


def test_the_chosen_tokens_are_the_most_likely_ones_of_the_choices(session, tokenizer):
    """A greedy choice, against the same search over the tokens' bytes by hand."""
    prompt = tokenizer.encode(PROMPT)
    pieces = [tokenizer._tokenizer.id_to_token(index) for index in range(session.config.n_vocab)]
    spelled = {choice: tokenizer._tokenizer.pre_tokenizer.pre_tokenize_str(choice) for choice in CHOICES}
    spelled = {"".join(piece for piece, _ in parts): choice for choice, parts in spelled.items()}
    (end,) = [index for index, piece in enumerate(pieces) if piece in tokenizer.all_special_tokens]
    for options in ({}, {"repetition_penalty": 3.0}, {"logit_bias": {end: -3.0, 7: 5.0}}):
        bias = {int(key): value for key, value in options.get("logit_bias", {}).items()}
        written, tokens = "", []
        while True:
            logits = session.prefill(0, np.array([*prompt, *tokens]), 0, logits_of=1)[0].copy()
            for token, value in bias.items():
                logits[token] += value
            for token in set(prompt) | set(tokens):
                penalty = options.get("repetition_penalty", 1.0)
                logits[token] = logits[token] * penalty if logits[token] < 0 else logits[token] / penalty
            fits = [
                (index == end and written in spelled)
                or (index != end and any(choice.startswith(written + piece) for choice in spelled))
                for index, piece in enumerate(pieces)
            ]
            token = int(np.argmax(np.where(fits, logits, -np.inf)))
            tokens.append(token)
            if token == end:
                break
            written += pieces[token]
        sampling = SamplingOptions(guided_choice=CHOICES, **options)
        request = Request(prompt, stop_token_ids=[end], sampling=sampling, tokenizer=tokenizer)
        (generation,) = Engine(session).generate([request])
        assert generation.tokens == tokens and generation.text == spelled[written], options


# ---- the end


def test_a_complete_text_ends_and_a_cut_one_says_so(session, tokenizer):
    end = tokenizer.eos_token_id
    prompt = tokenizer.encode(PROMPT)

    def run(stops=(end,), **options):
        request = {name: options.pop(name) for name in ("max_new_tokens", "min_new_tokens") if name in options}
        sampling = SamplingOptions(**options)
        made = Request(prompt, stop_token_ids=stops, sampling=sampling, tokenizer=tokenizer, **request)
        return Engine(session).generate([made])[0]

    whole = run(guided_regex="[a-z]{4}")
    assert whole.finish_reason == "stop" and whole.tokens[-1] == end and re.fullmatch("[a-z]{4}", whole.text)
    # Without an end token the text ends where nothing can follow; min_new_tokens cannot make it longer.
    assert run((), guided_regex="[a-z]{4}").tokens == whole.tokens[:-1]
    assert run((), guided_regex="[a-z]{4}").finish_reason == "stop"
    assert run(guided_regex="[a-z]{4}", min_new_tokens=30).text == whole.text
    assert len(run(guided_regex="[a-z]{4,}", min_new_tokens=12, max_new_tokens=40).tokens) > 12
    cut = run(guided_regex="[a-z]{40}", max_new_tokens=5)
    assert cut.finish_reason == "length" and re.fullmatch("[a-z]{5,39}", cut.text)
    assert run(guided_regex="").text == ""


def test_a_stop_token_that_has_a_text_ends_the_text_where_that_text_does(session, tokenizer):
    """A stop token is written unless it is special: it may come where the grammar is complete with it."""
    prompt = tokenizer.encode(PROMPT)
    (x,) = tokenizer.encode("x")
    for pattern, wanted in (("(x|ab)x", "(x|ab)x"), ("ab|abx", "ab|abx"), ("xab", "xab")):
        sampling = SamplingOptions(guided_regex=pattern, logit_bias={x: 50.0})
        request = Request(prompt, 20, stop_token_ids=[x], sampling=sampling, tokenizer=tokenizer)
        if pattern == "xab":  # the text would end after its first letter
            with pytest.raises(RequestError, match=r"^guided_regex: no token is left"):
                Engine(session).generate([request])
        else:
            (generation,) = Engine(session).generate([request])
            assert re.fullmatch(wanted, generation.text) and generation.finish_reason == "stop"


def test_a_text_that_cannot_go_on_is_an_error_and_no_end(generator):
    every = [generator.tokenizer.encode(letter)[0] for letter in "abcdefghijklmnopqrstuvwxyz"]
    one = re.escape("guided_regex: no token is left to go on with")
    with pytest.raises(RequestError, match=f"^{one}"):
        generator(PROMPT, guided_regex="[0-9]{2}q", suppress_tokens=every)
    with pytest.raises(RequestError, match=f"^{one}"):
        generator(PROMPT, guided_regex="[a-z]{30}", max_new_tokens=4, forced_eos_token_id=0)
    with pytest.raises(RequestError, match=f"^{one}"):
        generator(PROMPT, guided_regex="abc", logits_processor=[lambda history, scores: scores * 0 - np.inf])


def test_a_processor_of_the_users_cannot_allow_a_token_again(generator):
    def same(history, scores):
        return np.zeros_like(scores)

    texts = texts_of(generator, guided_regex=PATTERNS[0], logits_processor=[same])
    assert all(re.fullmatch(PATTERNS[0], text) for text in texts)


# ---- with other arguments and in company


def test_penalties_stop_strings_and_lookup_go_with_it(generator):
    free = generator(PROMPT, do_sample=False, guided_json=PERSON, max_new_tokens=LONG_ENOUGH)
    guessed = generator(PROMPT * 3, do_sample=False, guided_json=PERSON, max_new_tokens=LONG_ENOUGH)
    for most in (1, 10):
        options = {"do_sample": False, "guided_json": PERSON, "max_new_tokens": LONG_ENOUGH}
        assert generator(PROMPT, prompt_lookup_num_tokens=most, **options) == free
        assert generator(PROMPT * 3, prompt_lookup_num_tokens=most, **options) == guessed
    text = free[0]["generated_text"]
    stopped = generator(PROMPT, do_sample=False, guided_json=PERSON, stop_strings=['"age"'])
    assert '"age"' in stopped[0]["generated_text"] and text.startswith(stopped[0]["generated_text"])
    assert len(stopped[0]["generated_text"]) < len(text)
    for text in texts_of(generator, guided_json=PERSON, repetition_penalty=1.3, frequency_penalty=0.5, logprobs=2):
        jsonschema.validate(json.loads(text), PERSON)


def test_guesses_that_the_grammar_forbids_are_not_taken(generator):
    """The prompt suggests a repetition, and lookup guesses it."""
    prompt = "abcabcabcabcabcabc"
    pattern = "(abc){2}(abd|xyz){3}"
    options = {"do_sample": False, "guided_regex": pattern, "max_new_tokens": 40}
    (found,) = generator(prompt, prompt_lookup_num_tokens=8, max_matching_ngram_size=2, **options)
    assert re.fullmatch(pattern, found["generated_text"]) and [found] == generator(prompt, **options)


@pytest.mark.parametrize("drawn", [False, True])
def test_a_batch_has_the_texts_that_each_request_has_alone(session, tokenizer, drawn):
    prompt = tokenizer.encode(PROMPT)
    kinds = [{}, {"guided_regex": PATTERNS[0]}, {"guided_json": PERSON}, {}, {"guided_choice": CHOICES}, {}]
    requests = [
        Request(
            prompt[: 4 + number],
            60,
            stop_token_ids=[tokenizer.eos_token_id],
            sampling=SamplingOptions(do_sample=drawn, seed=number if drawn else None, **options),
            tokenizer=tokenizer,
        )
        for number, options in enumerate(kinds)
    ]
    alone = [Engine(session).generate([request])[0] for request in requests]
    together = Engine(session).generate(requests)
    assert [one.tokens for one in together] == [one.tokens for one in alone]
    assert [one.text for one in together] == [one.text for one in alone]
    assert re.fullmatch(PATTERNS[0], together[1].text) and together[4].text in CHOICES
    with Service(Engine(session)) as service:  # where one cannot go on, the others do
        sampling = SamplingOptions(guided_regex="q", suppress_tokens=tokenizer.encode("q"))
        bad = service.submit(Request(prompt, 60, sampling=sampling, tokenizer=tokenizer))
        submissions = [service.submit(request) for request in requests]
        with pytest.raises(RequestError, match=r"^guided_regex: no token is left"):
            bad.result()
        assert [one.result().tokens for one in submissions] == [one.tokens for one in alone]
