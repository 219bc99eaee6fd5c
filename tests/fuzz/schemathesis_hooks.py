"""What schemathesis runs around its cases: it counts their answers, and makes most positive cases such as can be served.

What a schema cannot say (the context's length, the vocabulary, which fields go together) would turn nearly all cases into
a 400 otherwise. Cases that are meant to be wrong stay as they are, and so does one positive case in eight.
"""

import atexit
import collections
import json
import os
import zlib

import schemathesis

N_VOCAB = int(os.environ["NEO_TF_FUZZ_VOCAB"])
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
NAMES = ("demo", "tiny-python")

answers = collections.Counter()


@schemathesis.hook
def before_call(context, case, kwargs):
    mode = case.meta.generation.mode.value if case.meta else ""
    if mode == "positive" and isinstance(case.body, dict) and zlib.crc32(repr(case.body).encode("utf-8", "replace")) % 8:
        case.body = servable(case.body)


@schemathesis.hook
def after_call(context, case, response):
    answers[f"{case.operation.label} {response.status_code}"] += 1


@atexit.register
def write_counts():
    with open(os.environ["NEO_TF_FUZZ_COUNTS"], "w", encoding="utf-8") as file:
        json.dump(answers, file)


def servable(body):
    """A body with the same fields, as far as they go together, and with values that the model has room for."""
    body = {name: small(name, value) for name, value in body.items() if value is not None}
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


def small(name, value):
    """A field's value, small enough for the model."""
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
    if type(value) is int:
        return value % N_VOCAB
    if isinstance(value, list):
        return [small_text(item) for item in value[:6]]
    if isinstance(value, dict):
        return {name: small_text(item) if name == "content" else item for name, item in value.items()}
    return value
