"""Text Generation Inference's protocol, through huggingface_hub's own client: texts, details, streams, errors."""

import asyncio
import json

import numpy as np
import pytest
from huggingface_hub import AsyncInferenceClient, InferenceClient, constants
from huggingface_hub.errors import OverloadedError, ValidationError
from server_helpers import running_server

import neo_tf
from neo_tf.runtime.server.api_keys import ApiKeys

PROMPT = "def read_lines(path):"
SAMPLED = {"max_new_tokens": 24, "temperature": 0.8, "seed": 11}


@pytest.fixture(scope="module", autouse=True)
def loopback():
    """The tests run with the hub switched off, which would forbid its client this machine's own address, too."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(constants, "HF_HUB_OFFLINE", False)
        yield


@pytest.fixture(scope="module")
def server(demo_folder):
    with running_server(demo_folder) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    return InferenceClient(server.url, provider="hf-inference")


@pytest.fixture(scope="module")
def generator(demo_folder):
    return neo_tf.pipeline(model=demo_folder)


def new_results(generator, prompt=PROMPT, **arguments):
    arguments = {
        "top_k": 0,
        "temperature": 1.0,
        "do_sample": True,
        "return_full_text": False,
        "logprobs": 0,
        **arguments,
    }
    return generator(prompt, **arguments)


def new_result(generator, prompt=PROMPT, **arguments):
    (result,) = new_results(generator, prompt, **arguments)
    return result


def end_of(generator, prompt=PROMPT, size=5):
    """Characters that the most likely text has after its first ones, and does not have before."""
    text = new_result(generator, prompt, do_sample=False, top_k=None, temperature=None, max_new_tokens=24)[
        "generated_text"
    ]
    return text[10 : 10 + size]


# ---- texts


def test_a_text_is_that_of_the_pipeline_with_the_same_seed(client, generator):
    expected = new_result(generator, **SAMPLED)["generated_text"]
    assert client.text_generation(PROMPT, **SAMPLED) == expected
    assert client.text_generation(PROMPT, return_full_text=True, **SAMPLED) == PROMPT + expected
    assert "".join(client.text_generation(PROMPT, stream=True, **SAMPLED)) == expected


def test_nothing_said_takes_100_of_the_most_likely_tokens(client, generator):
    expected = new_result(generator, do_sample=False, top_k=None, temperature=None, max_new_tokens=100)[
        "generated_text"
    ]
    assert client.text_generation(PROMPT) == expected
    # At these values the fields change nothing, so that they do not ask for drawn tokens either.
    assert client.text_generation(PROMPT, temperature=1.0, top_p=1.0) == expected


@pytest.mark.parametrize("drawing", [{"temperature": 0.7}, {"top_k": 5}, {"top_p": 0.9}, {"typical_p": 0.9}])
def test_a_setting_of_drawing_draws(client, generator, drawing):
    # As in Text Generation Inference, whose clients send do_sample: false beside a temperature.
    found = client.text_generation(PROMPT, do_sample=False, seed=3, max_new_tokens=12, **drawing)
    assert found == new_result(generator, seed=3, max_new_tokens=12, **drawing)["generated_text"]


def test_a_seed_that_the_server_chose_draws_the_same_text_again(client):
    first = client.text_generation(PROMPT, details=True, do_sample=True, max_new_tokens=24)
    again = client.text_generation(PROMPT, details=True, do_sample=True, max_new_tokens=24, seed=first.details.seed)
    other = client.text_generation(PROMPT, details=True, do_sample=True, max_new_tokens=24)
    assert again.generated_text == first.generated_text
    assert other.details.seed != first.details.seed


def test_a_text_ends_with_its_stop_string(client, generator):
    stop = end_of(generator)
    found = client.text_generation(PROMPT, stop=[stop], details=True, max_new_tokens=24)
    assert found.details.finish_reason == "stop_sequence"
    assert stop in found.generated_text and found.details.generated_tokens < 24


def test_truncate_keeps_the_last_tokens(client, generator):
    ids = generator.tokenizer.encode(PROMPT)[-3:]
    found = client.text_generation(PROMPT, truncate=3, max_new_tokens=8)
    (expected,) = generator([ids], do_sample=False, max_new_tokens=8, return_full_text=False)[0]
    assert found == expected["generated_text"]


def test_grammars(client):
    assert client.text_generation(PROMPT, grammar={"type": "regex", "value": "[0-9]{4}"}, do_sample=True).isdecimal()
    schema = {"type": "object", "properties": {"a": {"enum": [True]}}, "required": ["a"], "additionalProperties": False}
    for grammar in ({"type": "json", "value": schema}, {"type": "json_schema", "value": {"schema": schema}}):
        assert json.loads(client.text_generation(PROMPT, grammar=grammar)) == {"a": True}


# ---- details


def test_details_of_a_text(client, generator):
    found = client.text_generation(PROMPT, details=True, decoder_input_details=True, top_n_tokens=2, **SAMPLED)
    expected = new_result(generator, prompt_logprobs=0, **SAMPLED)
    details = found.details
    assert details.finish_reason == "length" and details.generated_tokens == 24 and details.seed == 11
    assert "".join(token.text for token in details.tokens) == found.generated_text
    np.testing.assert_allclose([token.logprob for token in details.tokens], expected["token_logprobs"], atol=1e-6)
    ids = generator.tokenizer.encode(PROMPT)
    assert [token.id for token in details.prefill] == ids
    assert "".join(token.text for token in details.prefill) == PROMPT
    assert details.prefill[0].logprob is None
    prompt_logprobs = [token.logprob for token in details.prefill[1:]]
    np.testing.assert_allclose(prompt_logprobs, expected["prompt_token_logprobs"], atol=1e-6)
    for token, top in zip(details.tokens, details.top_tokens, strict=True):
        assert len(top) == 2 and top[0]["logprob"] >= max(top[1]["logprob"], token.logprob)


def test_a_stop_token_is_special_and_has_no_text(client, generator):
    end = generator.tokenizer.all_special_ids[0]
    choice = {"type": "regex", "value": "x"}  # nothing but the end may follow
    found = client.text_generation(PROMPT, grammar=choice, details=True)
    assert found.generated_text == "x" and found.details.finish_reason == "eos_token"
    assert found.details.tokens[-1].id == end
    assert found.details.tokens[-1].special and found.details.tokens[-1].text == ""


def test_best_of_returns_the_likeliest_first_and_the_others_in_the_details(client, generator):
    arguments = {**SAMPLED, "max_new_tokens": 8}
    found = client.text_generation(PROMPT, best_of=3, details=True, **arguments)
    drawn = new_results(generator, num_return_sequences=3, **arguments)
    drawn.sort(key=lambda result: -np.mean(result["token_logprobs"]))
    texts = [found.generated_text, *(other.generated_text for other in found.details.best_of_sequences)]
    assert texts == [result["generated_text"] for result in drawn]


def test_without_details_the_answer_is_the_text_alone(server):
    assert server.post("/generate", inputs=PROMPT).json().keys() == {"generated_text"}
    assert server.post("/generate", inputs=PROMPT, parameters={"details": False}).json().keys() == {"generated_text"}
    assert server.post("/generate", inputs=PROMPT, parameters={}).json().keys() == {"generated_text", "details"}
    assert isinstance(server.post("/", inputs=PROMPT).json(), list)


# ---- streams


def test_a_stream_has_an_event_for_each_token_and_the_last_one_says_how_it_ended(client, generator):
    whole = client.text_generation(PROMPT, details=True, top_n_tokens=1, **SAMPLED)
    events = list(client.text_generation(PROMPT, details=True, stream=True, top_n_tokens=1, **SAMPLED))
    assert [event.token.id for event in events] == [token.id for token in whole.details.tokens]
    assert [event.token.logprob for event in events] == [token.logprob for token in whole.details.tokens]
    assert [event.top_tokens for event in events] == whole.details.top_tokens
    assert [event.index for event in events] == list(range(1, 25))
    assert all(event.generated_text is None and event.details is None for event in events[:-1])
    assert events[-1].generated_text == whole.generated_text
    end = events[-1].details
    assert (end.finish_reason, end.generated_tokens, end.seed) == ("length", 24, 11)
    assert end.input_length == len(generator.tokenizer.encode(PROMPT))


def test_generate_stream_is_the_same_stream(server):
    body = {"inputs": PROMPT, "parameters": {"max_new_tokens": 3}}
    by_path = server.post("/generate_stream", **body)
    assert by_path.headers["content-type"].startswith("text/event-stream")
    assert by_path.text == server.post("/", stream=True, **body).text


def test_the_asynchronous_client(server, generator):
    async def run():
        async with AsyncInferenceClient(server.url) as client:
            whole = await client.text_generation(PROMPT, **SAMPLED)
            pieces = [piece async for piece in await client.text_generation(PROMPT, stream=True, **SAMPLED)]
            return whole, "".join(pieces)

    expected = new_result(generator, **SAMPLED)["generated_text"]
    assert asyncio.run(run()) == (expected, expected)


# ---- the rest of the client


def test_a_chat(demo_folder):
    with running_server(demo_folder, chat_template="{% for m in messages %}{{ m.content }}{% endfor %}") as running:
        client = InferenceClient(running.url)
        chat = [{"role": "user", "content": PROMPT}]
        schema = {
            "type": "object",
            "properties": {"a": {"enum": [7]}},
            "required": ["a"],
            "additionalProperties": False,
        }
        kept = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
        found = client.chat_completion(chat, response_format=kept, max_tokens=60)
        assert json.loads(found.choices[0].message.content) == {"a": 7}
        whole = client.chat_completion(chat, max_tokens=8, seed=5).choices[0].message.content
        stream = client.chat_completion(chat, max_tokens=8, seed=5, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices) == whole


def test_information(client, server):
    assert client.get_endpoint_info()["model_id"] == "demo"
    assert client.get_endpoint_info()["max_total_tokens"] == server.serving.config.n_ctx + 1
    assert client.health_check()


def test_keys(demo_folder):
    with running_server(demo_folder, keys=ApiKeys(["secret"])) as running:
        assert InferenceClient(running.url, token="secret").text_generation(PROMPT, max_new_tokens=1)
        for path in ("/", "/generate", "/generate_stream"):
            answer = running.post(path, inputs=PROMPT)
            assert answer.status_code == 401 and answer.json()["error_type"] == "invalid_api_key"


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"temperature": 0}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": 10_000}, "max_new_tokens"),
        ({"best_of": 2}, "best_of"),
        ({"best_of": 2, "do_sample": True, "stream": True}, "best_of"),
        ({"details": True, "decoder_input_details": True, "stream": True}, "decoder_input_details"),
        ({"top_n_tokens": 6}, "top_n_tokens"),
        ({"watermark": True}, "watermark"),
        ({"adapter_id": "x"}, "adapter_id"),
        ({"grammar": {"type": "regex", "value": "("}}, "grammar"),
        ({"grammar": {"type": "xml", "value": "("}}, "grammar"),
        ({"seed": -1}, "seed"),
    ],
)
def test_what_is_wrong_is_named(client, parameters, named):
    with pytest.raises(ValidationError, match=named):
        client.text_generation(PROMPT, **parameters)


def test_the_name_stands_once_in_the_message(server):
    answer = server.post("/generate", inputs="a", parameters={"top_k": -1}, options={"wait_for_model": True})
    assert answer.json()["error"] == "top_k must be at least 0, not -1"


def test_wrong_bodies(server):
    for body in ({}, {"inputs": None}, {"inputs": 3}, {"inputs": "a", "parameters": {"tempratur": 1}}):
        answer = server.post("/generate", **body)
        assert answer.status_code == 422 and answer.json()["error_type"] == "validation"
    assert server.post("/generate", inputs="a", stream=True).status_code == 422


def test_a_full_queue(demo_folder):
    with running_server(demo_folder, slots=1, max_queue=0, step_seconds=0.02) as running:
        client = InferenceClient(running.url)
        stream = client.text_generation(PROMPT, stream=True, max_new_tokens=100)
        next(iter(stream))
        with pytest.raises(OverloadedError):
            client.text_generation(PROMPT, max_new_tokens=1)
        client.close()
        running.wait_until(lambda: running.free_slots == 1)


def test_a_text_that_a_filter_has_changed(demo_folder):
    with running_server(demo_folder, judge=lambda text, prompt: None if prompt == "a" else "other") as running:
        client = InferenceClient(running.url)
        assert "".join(client.text_generation(PROMPT, stream=True, max_new_tokens=4)) == "other"
        (event,) = client.text_generation(PROMPT, stream=True, details=True, max_new_tokens=4)
        assert event.generated_text == "other" and event.details.finish_reason == "length"
        found = client.text_generation("a", details=True, max_new_tokens=4)
        assert (found.generated_text, found.details.finish_reason) == ("", "content_filter")
        assert found.details.tokens == []
