"""/v1/completions: the pipeline's texts, whole and streamed, with log-probabilities; and what is refused."""

import asyncio
import json

import numpy as np
import openai
import pytest
from server_helpers import running_server

import neo_tf
from neo_tf.runtime.argument_kinds import Number, Whole
from neo_tf.runtime.argument_table import ARGUMENTS
from neo_tf.runtime.server.fields import argument_fields
from neo_tf.runtime.server.openai_completions import CompletionBody

PROMPT = "def read_lines(path):"
SAMPLED = {"max_tokens": 24, "temperature": 0.8, "seed": 11}


@pytest.fixture(scope="module")
def server(demo_folder):
    with running_server(demo_folder) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    with server.openai(max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def generator(demo_folder):
    return neo_tf.pipeline(model=demo_folder)


def new_texts(generator, prompt, **arguments):
    arguments = {"top_k": 0, "do_sample": True, "return_full_text": False, **arguments}
    return [result["generated_text"] for result in generator(prompt, **arguments)]


# ---- texts


def test_a_text_is_that_of_the_pipeline_with_the_same_seed(client, generator):
    found = client.completions.create(model="demo", prompt=PROMPT, **SAMPLED)
    (expected,) = new_texts(generator, PROMPT, max_new_tokens=24, temperature=0.8, seed=11)
    assert found.choices[0].text == expected
    assert found.choices[0].finish_reason == "length"
    ids = generator.tokenizer.encode(PROMPT)
    assert found.usage.prompt_tokens == len(ids)
    assert (found.usage.completion_tokens, found.usage.total_tokens) == (24, len(ids) + 24)
    assert found.object == "text_completion" and found.model == "demo"


def test_temperature_0_takes_the_most_likely_tokens_whatever_else_is_said_of_sampling(client, generator):
    found = client.completions.create(model="demo", prompt=PROMPT, temperature=0, top_p=0.5, max_tokens=12)
    (expected,) = new_texts(generator, PROMPT, max_new_tokens=12, do_sample=False, top_k=None)
    assert found.choices[0].text == expected


def test_structured_output_by_openais_name_and_by_vllms(client):
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    schema["additionalProperties"] = False
    named = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}
    for more in ({"response_format": named}, {"guided_json": schema}):
        found = client.completions.create(model="demo", prompt=PROMPT, n=2, extra_body=more, **SAMPLED)
        assert [type(json.loads(choice.text)["ok"]) for choice in found.choices] == [bool, bool]
        assert {choice.finish_reason for choice in found.choices} == {"stop"}
    more = {"guided_choice": ["yes", "no"]}
    pieces = client.completions.create(model="demo", prompt=PROMPT, stream=True, extra_body=more, **SAMPLED)
    assert "".join(piece.choices[0].text for piece in pieces) in ("yes", "no")


@pytest.mark.parametrize("as_ids", [False, True])
def test_a_list_of_prompts_gets_n_texts_for_each_in_order(client, generator, as_ids):
    prompts = [PROMPT, "import os", "class Parser:"]
    given = [generator.tokenizer.encode(text) for text in prompts] if as_ids else prompts
    found = client.completions.create(model="demo", prompt=given, n=2, **SAMPLED)
    expected = []
    for text in prompts:
        expected += new_texts(generator, text, max_new_tokens=24, temperature=0.8, seed=11, num_return_sequences=2)
    assert [choice.text for choice in found.choices] == expected
    assert [choice.index for choice in found.choices] == list(range(6))


def test_token_ids_and_the_empty_prompt(client, generator):
    ids = generator.tokenizer.encode(PROMPT)
    assert (
        client.completions.create(model="demo", prompt=ids, **SAMPLED).choices[0].text
        == client.completions.create(model="demo", prompt=PROMPT, **SAMPLED).choices[0].text
    )
    (expected,) = new_texts(generator, "", max_new_tokens=8, do_sample=False, top_k=None)
    begun = generator.tokenizer.decode([generator.settings.arguments["bos_token_id"]], skip_special_tokens=True)
    found = client.completions.create(model="demo", prompt="", temperature=0, max_tokens=8)
    assert found.choices[0].text == expected.removeprefix(begun)


def test_stop_strings_end_the_text_before_them(client, generator):
    (whole,) = new_texts(generator, PROMPT, max_new_tokens=40, do_sample=False, top_k=None)
    stops = [whole[9:13], "never comes", whole[20:23], "a", "b"]
    found = client.completions.create(model="demo", prompt=PROMPT, temperature=0, max_tokens=40, stop=stops)
    first = min(whole.find(stop) + len(stop) for stop in stops if stop in whole)
    text = found.choices[0].text
    assert found.choices[0].finish_reason == "stop"
    assert whole.startswith(text) and len(text) < first and not any(stop in text for stop in stops)


def test_every_field_reaches_the_text(server, generator):
    """Each field, against the pipeline with the argument that it stands for."""
    fields = {
        "presence_penalty": (1.5, {"presence_penalty": 1.5}),
        "frequency_penalty": (-2.0, {"frequency_penalty": -2.0}),
        "logit_bias": ({"5": 9.5}, {"logit_bias": {5: 9.5}}),
        "top_k": (3, {"top_k": 3}),
        "top_p": (0.6, {"top_p": 0.6}),
        "min_p": (0.2, {"min_p": 0.2}),
        "repetition_penalty": (1.7, {"repetition_penalty": 1.7}),
        "stop_token_ids": ([30, 40, 200, 201, 202], {"stop_token_ids": [30, 40, 200, 201, 202]}),
        "temperature": (1.4, {"temperature": 1.4}),
        "seed": (12, {"seed": 12}),
        "max_tokens": (7, {"max_new_tokens": 7}),
    }
    plain = server.complete(prompt=PROMPT, **SAMPLED)["choices"][0]["text"]
    for field, (value, arguments) in fields.items():
        found = server.complete(prompt=PROMPT, **{**SAMPLED, field: value})["choices"][0]["text"]
        (expected,) = new_texts(
            generator, PROMPT, **{"max_new_tokens": 24, "temperature": 0.8, "seed": 11, **arguments}
        )
        assert found == expected, field
        assert found != plain or field == "stop_token_ids", field


def test_ends_of_text(server):
    end = {"prompt": PROMPT, "temperature": 0, "max_tokens": 6, "logit_bias": {"0": 100}}  # <|endoftext|>
    ended = server.complete(**end)["choices"][0]
    assert (ended["text"], ended["finish_reason"]) == ("", "stop")
    shown = server.complete(**end, skip_special_tokens=False)["choices"][0]
    assert (shown["text"], shown["finish_reason"]) == ("<|endoftext|>", "stop")
    going_on = server.complete(**end, ignore_eos=True, skip_special_tokens=False)["choices"][0]
    assert (going_on["text"], going_on["finish_reason"]) == ("<|endoftext|>" * 6, "length")
    late = server.complete(**end, min_tokens=3)
    assert late["usage"]["completion_tokens"] == 4


def test_truncate_prompt_tokens_keeps_the_last_ones(server, generator):
    ids = generator.tokenizer.encode(PROMPT)
    cut = server.complete(prompt=PROMPT, truncate_prompt_tokens=2, **SAMPLED)
    assert cut["usage"]["prompt_tokens"] == 2
    assert cut["choices"][0]["text"] == server.complete(prompt=ids[-2:], **SAMPLED)["choices"][0]["text"]
    long = server.complete(prompt=PROMPT * 100, truncate_prompt_tokens=-1, max_tokens=1)
    assert long["usage"]["prompt_tokens"] == 512


def test_best_of_returns_the_texts_whose_tokens_are_the_likeliest(server):
    asked = {"prompt": [PROMPT, "import os"], **SAMPLED, "logprobs": 0}
    every = server.complete(n=6, **asked)
    best = server.complete(n=2, best_of=6, **asked)
    assert best["usage"]["completion_tokens"] == every["usage"]["completion_tokens"]
    for prompt in (0, 1):
        own = every["choices"][prompt * 6 : prompt * 6 + 6]
        own.sort(key=lambda choice: -np.mean(choice["logprobs"]["token_logprobs"]))
        found = best["choices"][prompt * 2 : prompt * 2 + 2]
        assert [choice["text"] for choice in found] == [choice["text"] for choice in own[:2]]
    assert server.complete(prompt=PROMPT, best_of=3, max_tokens=4)["choices"][0]["logprobs"] is None


# ---- log-probabilities


def log_softmax(logits):
    wide = np.asarray(logits, np.float64)
    return (
        wide - wide.max(-1, keepdims=True) - np.log(np.exp(wide - wide.max(-1, keepdims=True)).sum(-1, keepdims=True))
    )


def all_logits(generator, ids):
    """The logits after each of some token ids, float32 [n, n_vocab], from the session alone."""
    return generator.session.prefill(0, ids, 0, logits_of="all")


@pytest.mark.parametrize("text", ["def read(path):\n    return 1", "naïve 日本語 🙂 text", "<|endoftext|>import os"])
def test_echo_with_logprobs_is_what_evaluation_harnesses_read(server, generator, text):
    """lm-evaluation-harness: the sum over the continuation's tokens, and whether each is the most likely one."""
    ids = generator.tokenizer.encode(text)
    asked = {"temperature": 0, "max_tokens": 1, "logprobs": 1, "echo": True, "seed": 1234}
    choice = server.complete(prompt=[ids], **asked)["choices"][0]
    found = choice["logprobs"]
    logits = log_softmax(all_logits(generator, ids))
    expected = [logits[place, token] for place, token in enumerate(ids[1:])]
    assert found["token_logprobs"][0] is None and found["top_logprobs"][0] is None
    np.testing.assert_allclose(found["token_logprobs"][1 : len(ids)], expected, atol=1e-4)
    assert [len(found[name]) for name in found] == [len(ids) + 1] * 4
    for place, token in enumerate(ids[1:], start=1):
        top = found["top_logprobs"][place]
        is_greedy = max(top, key=top.get) == found["tokens"][place]
        assert is_greedy == (int(np.argmax(logits[place - 1])) == token)
    # The text's pieces lie where text_offset says.
    for place in range(len(ids)):
        piece = found["tokens"][place]
        if not piece.startswith("bytes:"):
            assert choice["text"][found["text_offset"][place] :].startswith(piece)
    assert choice["text"].startswith(text)


def test_tokens_that_are_no_whole_characters_are_told_apart(server, generator):
    ids = generator.tokenizer.encode("日")
    tokens = server.complete(prompt=[[0, *ids]], echo=True, logprobs=0, max_tokens=0)["choices"][0]["logprobs"][
        "tokens"
    ]
    assert tokens[0] == "<|endoftext|>"
    assert "".join(token.removeprefix("bytes:") for token in tokens[1:]) == "\\xe6\\x97\\xa5"


def test_logprobs_of_new_tokens_are_those_of_the_engine(server, generator):
    found = server.complete(prompt=PROMPT, **SAMPLED, logprobs=5)["choices"][0]["logprobs"]
    request = generator.requests(
        PROMPT,
        generator.arguments(
            {"do_sample": True, "temperature": 0.8, "top_k": 0, "seed": 11, "max_new_tokens": 24, "logprobs": 5}
        ),
    )[0]
    (generation,) = generator.engine.generate([request])
    np.testing.assert_allclose(found["token_logprobs"], generation.token_logprobs, atol=1e-5)
    for top, expected in zip(found["top_logprobs"], generation.top_logprobs, strict=True):
        assert 5 <= len(top) <= 6
        np.testing.assert_allclose(list(top.values())[:5], list(expected.values()), atol=1e-5)


def test_max_tokens_0_scores_the_prompt_alone(server):
    answer = server.complete(prompt=PROMPT, max_tokens=0, echo=True, logprobs=1)
    one = server.complete(prompt=PROMPT, max_tokens=1, echo=True, logprobs=1)
    choice = answer["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == (PROMPT, "length")
    assert choice["logprobs"]["token_logprobs"] == one["choices"][0]["logprobs"]["token_logprobs"][:-1]
    assert answer["usage"]["completion_tokens"] == 0


def test_prompt_logprobs_in_vllms_form(server, generator):
    ids = generator.tokenizer.encode(PROMPT)
    choice = server.complete(prompt=PROMPT, max_tokens=1, prompt_logprobs=2)["choices"][0]
    logits = log_softmax(all_logits(generator, ids))
    first, *others = choice["prompt_logprobs"]
    assert first is None and len(others) == len(ids) - 1
    for place, (token, entries) in enumerate(zip(ids[1:], others, strict=True)):
        assert abs(entries[str(token)]["logprob"] - logits[place, token]) < 1e-4
        assert entries[str(token)]["decoded_token"] == generator.tokenizer.decode([token])
        best = str(int(np.argmax(logits[place])))
        assert entries[best]["rank"] == 1


# ---- streams


def test_a_stream_is_the_same_text_in_pieces(client):
    asked = {"model": "demo", "prompt": [PROMPT, "naïve 日本語"], "n": 2, "stop": ["\n\n"], **SAMPLED}
    whole = client.completions.create(**asked)
    texts = [""] * 4
    reasons = {}
    chunks = list(client.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    for chunk in chunks[:-1]:
        (choice,) = chunk.choices
        texts[choice.index] += choice.text
        assert choice.index not in reasons
        if choice.finish_reason:
            reasons[choice.index] = choice.finish_reason
        assert chunk.usage is None
    assert texts == [choice.text for choice in whole.choices]
    assert reasons == {choice.index: choice.finish_reason for choice in whole.choices}
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_stream_of_echo_and_logprobs_is_the_same_in_pieces(client):
    asked = {"model": "demo", "prompt": PROMPT, "logprobs": 2, "echo": True, **SAMPLED}
    whole = client.completions.create(**asked).choices[0]
    parts = [chunk.choices[0] for chunk in client.completions.create(**asked, stream=True)]
    assert "".join(part.text for part in parts) == whole.text
    joined = {name: [] for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")}
    for part in parts:
        for name, values in joined.items():
            values += getattr(part.logprobs, name) if part.logprobs else []
    expected = whole.logprobs
    assert joined["tokens"] == expected.tokens and joined["text_offset"] == expected.text_offset
    np.testing.assert_allclose(joined["token_logprobs"][1:], expected.token_logprobs[1:], atol=1e-5)


def test_the_stream_is_server_sent_events(server):
    with (
        server.client() as client,
        client.stream("POST", "/v1/completions", json={"prompt": PROMPT, "max_tokens": 3, "stream": True}) as answer,
    ):
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in answer.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    assert all(json.loads(line.removeprefix("data: "))["object"] == "text_completion" for line in lines[:-1])


def test_async_clients_get_their_own_texts_together(server, client):
    seeds = range(8)
    alone = [client.completions.create(model="demo", prompt=PROMPT, max_tokens=20, seed=seed) for seed in seeds]

    async def together():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:

            async def streamed(seed):
                stream = await made.completions.create(
                    model="demo", prompt=PROMPT, max_tokens=20, seed=seed, stream=True
                )
                return "".join([chunk.choices[0].text async for chunk in stream])

            return await asyncio.gather(*map(streamed, seeds))

    assert asyncio.run(together()) == [each.choices[0].text for each in alone]


# ---- what is refused


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("temperature", -0.1, "greater than 0"),
        ("temperature", "hot", "must be a number"),
        ("temperature", 10**400, "float"),
        ("top_p", 0, "greater than 0 and at most 1"),
        ("top_p", 1.01, "at most 1"),
        ("top_k", -2, "at least 0"),
        ("top_k", 2.5, "whole number"),
        ("min_p", 2, "from 0 to 1"),
        ("n", 0, "at least 1"),
        ("n", True, "whole number"),
        ("best_of", 0, "at least 1"),
        ("max_tokens", -1, "at least 1"),
        ("max_tokens", 4000, "512"),
        ("min_tokens", -1, "at least 0"),
        ("seed", -1, "at least 0"),
        ("logprobs", 6, "at most 5"),
        ("logprobs", -1, "at least 0"),
        ("prompt_logprobs", 6, "at most 5"),
        ("stop", [""], "none of them empty"),
        ("stop", [1], "list of texts"),
        ("stop", {}, "list of texts"),
        ("presence_penalty", [], "must be a number"),
        ("repetition_penalty", 0, "greater than 0"),
        ("logit_bias", {"x": 1}, "token id"),
        ("logit_bias", {"2048": 1}, "outside the vocabulary of 2048"),
        ("logit_bias", [], "token id"),
        ("stop_token_ids", [2048], "outside the vocabulary of 2048"),
        ("stop_token_ids", [-1], "outside the vocabulary of 2048"),
        ("stop_token_ids", "1", "token ids"),
        ("truncate_prompt_tokens", 0, "at least 1"),
        ("echo", 1, "True or False"),
        ("stream", "yes", "bool"),
        ("stream_options", {"include_usage": True}, "stream: true"),
        ("skip_special_tokens", 1, "True or False"),
        ("suffix", "end", "not served"),
        ("response_format", {"type": "xml"}, "json_object"),
        ("response_format", {"type": "json_schema", "json_schema": {"schema": {"not": {}}}}, "not"),
        ("guided_regex", "(a", "unclosed group"),
        ("guided_choice", [], "one or more texts"),
        ("guided_json", {"type": "object", "minProperties": 3}, "minProperties"),
        ("use_beam_search", True, "not served"),
        ("prompt", [], "empty list"),
        ("prompt", [[]], "prompt must be"),
        ("prompt", [1, "a"], "prompt must be"),
        ("prompt", [True], "prompt must be"),
        ("prompt", 7, "prompt must be"),
        ("prompt", [2048], "outside the vocabulary of 2048"),
        ("prompt", [[1], [-1]], "outside the vocabulary of 2048"),
        ("prompt", [2**70], "outside the vocabulary of 2048"),
        ("prompt", "\ud800", "UTF-8"),
        ("prompt", "x y " * 600, "512"),
        ("model", "gpt-4", "does not exist"),
        ("max_token", 5, "unknown field"),
    ],
)
def test_what_is_wrong_is_told_with_its_field(server, field, value, words):
    body = json.dumps({"prompt": PROMPT, "max_tokens": 4, field: value})
    with server.client() as client:
        answer = client.post("/v1/completions", content=body, headers={"content-type": "application/json"})
    error = answer.json()["error"]
    assert answer.status_code == (404 if field == "model" else 400), answer.text
    assert error["param"] == field and words in error["message"], error
    assert "\n" not in error["message"] and len(error["message"]) < 600
    assert error["type"] in ("invalid_request_error", "not_found_error") and "code" in error


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": PROMPT, "temperature": 0, "n": 2},
        {"prompt": PROMPT, "n": 3, "best_of": 2},
        {"prompt": PROMPT, "best_of": 2, "stream": True},
        {"prompt": PROMPT, "prompt_logprobs": 1, "stream": True},
        {"prompt": PROMPT, "min_tokens": 5, "max_tokens": 4},
    ],
)
def test_what_does_not_go_together_is_refused(server, body):
    assert server.post("/v1/completions", **body).status_code == 400


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"{", "invalid_json"),
        (b"[]", "invalid_body"),
        (b"", "missing_field"),
        (b"\xff", None),
        (b"[" * 200_000, None),
        (b'{"seed": ' + b"1" * 10_000 + b"}", None),
        (b'{"prompt": "a", "temperature": NaN}', "invalid_value"),
        (b'{"prompt": "a", "presence_penalty": Infinity}', "invalid_value"),
        (b'{"\\ud800": 1}', None),
    ],
)
def test_bodies_that_cannot_be_read(server, content, code):
    with server.client() as client:
        answer = client.post("/v1/completions", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert code is None or answer.json()["error"]["code"] == code, answer.text


def test_the_schema_has_the_ranges_of_the_table_of_arguments(server):
    with server.client() as client:
        schema = client.get("/openapi.json").json()
    fields = schema["components"]["schemas"]["CompletionBody"]["properties"]
    for field, name in argument_fields(CompletionBody).items():
        kind = ARGUMENTS[name].kind
        options = fields[field]["anyOf"]
        if isinstance(kind, Whole):
            assert options[0]["type"] == "integer" and options[0].get("minimum") == kind.least, field
        if isinstance(kind, Number) and kind.most is not None:
            assert options[0]["maximum"] == kind.most, field
        assert fields[field]["description"]
    for path in schema["paths"].values():
        for operation in path.values():
            assert "422" not in operation["responses"] and "default" in operation["responses"]


def test_numbers_at_the_edge_of_what_is_allowed_are_no_error_of_the_server(server):
    edges = [
        {"temperature": 1e-300},
        {"temperature": 5e-324},
        {"temperature": 1e300},
        {"top_k": 10**30},
        {"seed": 10**300},
        {"repetition_penalty": 1e-300},
        {"repetition_penalty": 1e300},
        {"presence_penalty": 1e308, "frequency_penalty": 1e308},
        {"presence_penalty": -1e308, "frequency_penalty": -1e308},
        {"presence_penalty": 2**64},
        {"frequency_penalty": 2**64},
        {"frequency_penalty": -(2**70)},
        {"temperature": 10**30, "repetition_penalty": 10**30},
        {"logit_bias": {"5": 10**30}},
        {"logit_bias": {"5": 1e300}},
        {"logit_bias": {"5": -1e300, "6": 1e300}},
        {"top_p": 5e-324},
        {"min_p": 1},
    ]
    for edge in edges:
        for more in ({}, {"logprobs": 5}):
            answer = server.post("/v1/completions", prompt=PROMPT, max_tokens=3, **edge, **more)
            assert answer.status_code in (200, 400), (edge, answer.text)


def test_openais_client_raises_its_own_errors(client):
    with pytest.raises(openai.BadRequestError) as told:
        client.completions.create(model="demo", prompt=PROMPT, temperature=-1)
    assert told.value.param == "temperature" and told.value.code == "invalid_value"
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="gpt-4", prompt=PROMPT)


def test_a_request_that_stops_being_checked_is_not_run(server):
    """All prompts are checked before one runs."""
    steps = len(server.steps)
    assert server.post("/v1/completions", prompt=[[5], [5000]]).status_code == 400
    assert len(server.steps) == steps
    assert server.serving.admission.active == 0


def test_models_are_listed_under_all_names(client):
    assert [model.id for model in client.models.list()] == ["demo", "tiny-python"]
    assert client.models.retrieve("tiny-python").id == "tiny-python"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")
    assert client.completions.create(model="tiny-python", prompt="a", max_tokens=1).model == "demo"
