"""/v1/chat/completions, and the tokenizer's paths."""

import json

import pytest
from server_helpers import running_server

TEMPLATE = """{% for message in messages %}<{{ message.role }}>{{ message.content }}
{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"""
MESSAGES = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "import os"}]
RENDERED = "<system>Be short.\n<user>import os\n<assistant>"


@pytest.fixture(scope="module")
def server(demo_folder):
    with running_server(demo_folder, chat_template=TEMPLATE) as running:
        yield running


@pytest.fixture(scope="module")
def without_template(demo_folder):
    with running_server(demo_folder) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    with server.openai(max_retries=0) as made:
        yield made


def test_a_chat_is_the_completion_of_its_text(server, client):
    found = client.chat.completions.create(model="demo", messages=MESSAGES, max_tokens=12, seed=3, n=2)
    plain = server.complete(prompt=RENDERED, max_tokens=12, seed=3, n=2)
    assert [choice.message.content for choice in found.choices] == [choice["text"] for choice in plain["choices"]]
    assert {choice.message.role for choice in found.choices} == {"assistant"}
    assert found.usage.prompt_tokens == plain["usage"]["prompt_tokens"]
    assert found.usage.completion_tokens == 24
    parts = [
        MESSAGES[0],
        {"role": "user", "content": [{"type": "text", "text": "import "}, {"type": "text", "text": "os"}]},
    ]
    same = client.chat.completions.create(model="demo", messages=parts, max_completion_tokens=12, seed=3)
    assert same.choices[0].message.content == plain["choices"][0]["text"]


def test_without_a_limit_a_chat_goes_on_to_the_end_of_the_context(client):
    found = client.chat.completions.create(
        model="demo", messages=MESSAGES, temperature=0, extra_body={"ignore_eos": True}
    )
    assert found.usage.total_tokens == 512 and found.choices[0].finish_reason == "length"


def test_a_stream_of_a_chat_is_the_same_text(client):
    asked = {"model": "demo", "messages": MESSAGES, "max_tokens": 20, "seed": 5, "logprobs": True, "top_logprobs": 3}
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    choices = [chunk.choices[0] for chunk in chunks[:-1]]
    assert choices[0].delta.role == "assistant" and all(choice.delta.role is None for choice in choices[1:])
    assert "".join(choice.delta.content or "" for choice in choices) == whole.choices[0].message.content
    assert choices[-1].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].usage == whole.usage
    tokens = [entry for choice in choices if choice.logprobs for entry in choice.logprobs.content]
    assert [entry.token for entry in tokens] == [entry.token for entry in whole.choices[0].logprobs.content]
    for entry in tokens:
        assert len(entry.top_logprobs) == 3 and bytes(entry.bytes).decode() == entry.token
        assert entry.top_logprobs[0].logprob >= entry.logprob


def test_the_last_message_can_be_continued(server, client):
    messages = [*MESSAGES, {"role": "assistant", "content": "def read"}]
    found = client.chat.completions.create(
        model="demo", messages=messages, max_tokens=8, temperature=0, extra_body={"continue_final_message": True}
    )
    plain = server.complete(prompt=RENDERED + "def read", max_tokens=8, temperature=0)
    assert found.choices[0].message.content == plain["choices"][0]["text"]


def test_a_model_without_a_template_says_so(without_template):
    answer = without_template.post("/v1/chat/completions", messages=MESSAGES)
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["code"] == "no_chat_template" and "--chat-template" in error["message"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("messages", []),
        ("messages", "hello"),
        ("messages", [{"content": "x"}]),
        ("messages", [{"role": "user"}]),
        ("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]),
        ("messages", [{"role": "user", "content": "x y " * 600}]),
        ("max_tokens", 0),
        ("max_tokens", 1000),
        ("max_completion_tokens", 1000),
        ("top_logprobs", 2),
        ("tools", [{"type": "function"}]),
        ("chat_template", "{{ 1 }}"),
        ("response_format", {"type": "xml"}),
        ("temperature", -1),
        ("prompt", "x"),
    ],
)
def test_what_is_wrong_is_told_with_its_field(server, field, value):
    answer = server.post("/v1/chat/completions", **{"messages": MESSAGES, field: value})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == field, answer.text


def test_a_template_that_refuses_messages_is_a_bad_request(demo_folder):
    with running_server(demo_folder, chat_template="{{ raise_exception('only one turn') }}") as running:
        answer = running.post("/v1/chat/completions", messages=MESSAGES)
    assert answer.status_code == 400 and "only one turn" in answer.json()["error"]["message"]


# ---- the tokenizer


@pytest.mark.parametrize("text", ["def read(path):", "naïve 日本語 🙂", "<|endoftext|>x", ""])
def test_text_to_ids_and_back(server, text):
    found = server.post("/tokenize", prompt=text, return_token_strs=True).json()
    tokenizer = server.serving.tokenizer
    assert found["tokens"] == tokenizer.encode(text)
    assert found["count"] == len(found["tokens"]) == len(found["token_strs"]) and found["max_model_len"] == 512
    assert server.post("/detokenize", tokens=found["tokens"]).json() == {"prompt": text}


def test_a_chats_ids(server):
    found = server.post("/tokenize", messages=MESSAGES).json()
    assert found["tokens"] == server.serving.tokenizer.encode(RENDERED)


def test_tokenizer_info(server):
    with server.client() as client:
        found = client.get("/tokenizer_info").json()
    assert found["eos_token"] == "<|endoftext|>" and found["chat_template"] == TEMPLATE
    assert found["vocab_size"] == len(server.serving.tokenizer)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": 5}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": MESSAGES}, "prompt"),
        ("/detokenize", {"tokens": [5000]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/detokenize", {"tokens": None}, "tokens"),
        ("/detokenize", {}, "tokens"),
    ],
)
def test_what_the_tokenizer_cannot_take(server, path, body, param):
    answer = server.post(path, **body)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param, answer.text


def test_a_response_format_is_kept_to(server):
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer"}},
        "required": ["n"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "a_number", "schema": schema}}
    answer = server.post("/v1/chat/completions", messages=MESSAGES, response_format=wanted, max_tokens=60, seed=3)
    choice = answer.json()["choices"][0]
    assert choice["finish_reason"] == "stop", answer.text
    found = json.loads(choice["message"]["content"])
    assert found.keys() == {"n"} and isinstance(found["n"], int)
