"""What schemathesis runs around its cases: it counts their answers, and turns most positive cases into servable ones.

What a schema cannot say (the context's length, the vocabulary, which fields go together) would make nearly all cases a
400 otherwise. Cases that are meant to be wrong stay as they are, and so does one positive case in eight.
"""

import atexit
import collections
import json
import os
import zlib

import schemathesis

N_VOCAB = 2048  # of the demo model
# {field: the number of values from `least` on that are kept small}
SMALL = {
    "n": (1, 3),
    "max_tokens": (1, 12),
    "max_completion_tokens": (1, 12),
    "max_new_tokens": (1, 12),
    "response_length": (1, 12),
    "min_tokens": (0, 2),
    "logprobs": (0, 6),
    "top_logprobs": (0, 6),
    "top_n_tokens": (0, 6),
    "prompt_logprobs": (0, 6),
    "truncate_prompt_tokens": (1, 50),
    "truncate": (1, 50),
    "best_of": (3, 2),
}
# Of each group the first field that is there stays.
ALTERNATIVES = (
    ("response_format", "guided_json", "guided_regex", "guided_choice", "grammar"),
    ("max_completion_tokens", "max_tokens"),
    ("messages", "prompt"),
)
# In place of null.
NEEDED = {"inputs": "a", "input": "a", "tokens": [1], "messages": [{"role": "user", "content": "a"}]}
NAMES = ("demo", "tiny-python")

answers = collections.Counter()


@schemathesis.hook
def before_call(context, case, kwargs):
    mode = case.meta.generation.mode.value if case.meta else ""
    if (
        mode == "positive"
        and isinstance(case.body, dict)
        and zlib.crc32(repr(case.body).encode("utf-8", "replace")) % 8
    ):
        case.body = servable(case.body)


@schemathesis.hook
def after_call(context, case, response):
    answers[f"{case.operation.label} {response.status_code}"] += 1


@atexit.register
def write_counts():
    with open(os.environ["NEO_TF_FUZZ_COUNTS"], "w", encoding="utf-8") as file:
        json.dump(answers, file)


def servable(given):
    """A body with the same fields, as far as they go together, and with values that the model has room for."""
    body = {name: small(name, value) for name, value in given.items() if value is not None}
    body |= {name: value for name, value in NEEDED.items() if name in given and name not in body}
    for group in ALTERNATIVES:
        for name in [name for name in group if name in body][1:]:
            del body[name]
    parameters = body.get("parameters")
    if isinstance(parameters, dict):
        body["parameters"] = servable(parameters)
    if "model" in body:
        body["model"] = NAMES[len(str(body["model"])) % 2]
    if body.get("temperature") == 0 or body.get("do_sample") is False:
        for name in ("n", "best_of"):
            body.pop(name, None)
    if body.get("stream"):
        for name in ("best_of", "prompt_logprobs"):
            body.pop(name, None)
    else:
        body.pop("stream_options", None)
    if "top_logprobs" in body:
        body["logprobs"] = True
    if body.get("continue_final_message"):
        body["add_generation_prompt"] = False
    for name in ("prompt_logprobs", "truncate_prompt_tokens"):
        if isinstance(body.get("prompt"), list):
            body.pop(name, None)
    return body


def limit_length(path, body):
    """Lets a body ask for few new tokens, where it does not say how many."""
    if path == "/v1/completions":
        body.setdefault("max_tokens", 4)
    elif path == "/v1/chat/completions" and "max_tokens" not in body:
        body.setdefault("max_completion_tokens", 4)
    elif "inputs" in body and body.get("parameters", {}) == {}:
        body["parameters"] = {"max_new_tokens": 4}
    elif isinstance(body.get("parameters"), dict):
        body["parameters"].setdefault("max_new_tokens", 4)


def small(name, value):
    """A field's value, small enough for the model."""
    if isinstance(value, float) and value.is_integer():  # for JSON schema 1.0 is a whole number
        value = int(value)
    if name in SMALL and type(value) is int:
        least, count = SMALL[name]
        return value if value < least else least + value % count
    if name in ("prompt", "input", "inputs", "tokens", "stop", "stop_token_ids", "messages"):
        return small_text(value)
    if name == "logit_bias" and isinstance(value, dict):
        return {str(int(token) % N_VOCAB): bias for token, bias in value.items() if token.isascii() and token.isdigit()}
    return value


def small_text(value):
    """A text, token ids, or a list of either, of a few items."""
    if isinstance(value, str):
        return value[:200].encode("utf-8", "replace").decode() or "a"
    if type(value) in (int, float):
        return int(value) % N_VOCAB
    if isinstance(value, list):
        return [small_text(item) for item in value[:6]]
    if isinstance(value, dict):
        return {name: small_text(item) if name == "content" else item for name, item in value.items()}
    return value
