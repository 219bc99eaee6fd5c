"""OpenAI's /v1/embeddings: texts as vectors, from the final hidden states."""

from __future__ import annotations

import asyncio
import base64
import functools
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter
from fastapi import Request as HttpRequest
from pydantic import BaseModel, ConfigDict
from starlette.responses import JSONResponse, Response

from ..argument_kinds import Choice, Flag
from ..pooling import pool
from .errors import bad_request
from .fields import Argument, Checked, Ignored, NotServed
from .prompt_field import Prompts
from .serving import Served, Serving

router = APIRouter(prefix="/v1", tags=["OpenAI"])

_MOST_INPUTS = 2048  # as in OpenAI's API: the answer is larger than the request


class EmbeddingsBody(BaseModel):
    """A request of /v1/embeddings. A field that is null or missing has its default."""

    model_config = ConfigDict(extra="forbid", strict=True)

    input: Annotated[Any, Prompts("What becomes vectors: one for each text.", is_optional=False)]
    model: str | None = None
    encoding_format: Annotated[
        Any,
        Checked(Choice(("float", "base64")), "Vectors as numbers, or as the base64 of float32 in little-endian order."),
    ] = None
    pooling: Annotated[
        Any,
        Checked(Choice(("mean", "last")), "The mean of all tokens' hidden states (the default), or the last token's."),
    ] = None
    normalize: Annotated[Any, Checked(Flag(), "Scale each vector to the length 1; by default not.")] = None
    add_special_tokens: Annotated[Any, Argument("add_special_tokens")] = None
    dimensions: Annotated[Any, NotServed("the vectors have the model's own hidden size")] = None
    user: Annotated[Any, Ignored()] = None


@router.post("/embeddings", summary="Texts as vectors")
async def embeddings(body: EmbeddingsBody, serving: Served, http: HttpRequest) -> Response:
    """Returns a vector for each text, as OpenAI's API does."""
    serving.check_name(body.model)
    texts = await asyncio.to_thread(_token_ids, body, serving)
    serving.log_prompt(http, body.input)
    pooled = functools.partial(pool, pooling=body.pooling or "mean", normalize=bool(body.normalize))
    vectors = await serving.embedder.embed(texts, pooled, http.receive)
    tokens = sum(map(len, texts))
    serving.metrics.prompt_tokens.inc(tokens)
    return await asyncio.to_thread(_answer, body, serving, vectors, tokens)


def _token_ids(body: EmbeddingsBody, serving: Serving) -> list[list[int]]:
    """The token ids of each text, checked.

    Raises:
        ServerError: They cannot be served.
    """
    if len(body.input) > _MOST_INPUTS:
        raise bad_request(
            f"input has {len(body.input)} texts, and at most {_MOST_INPUTS} are allowed", "input", "invalid_value"
        )
    adds = True if body.add_special_tokens is None else body.add_special_tokens
    texts = []
    for number, text in enumerate(body.input):
        if isinstance(text, str):
            serving.check_length(text, "input")
        ids = serving.tokenizer.encode(text, add_special_tokens=adds) if isinstance(text, str) else text
        if not ids:
            raise bad_request(f"input: text {number} has no tokens", "input", "invalid_value")
        if len(ids) > serving.config.n_ctx:
            raise bad_request(
                f"input: text {number} has {len(ids)} tokens, but the model's context has {serving.config.n_ctx}",
                "input",
                "context_length_exceeded",
            )
        serving.check_ids(ids, "input")
        texts.append(ids)
    return texts


def _answer(body: EmbeddingsBody, serving: Serving, vectors: list[np.ndarray], tokens: int) -> Response:
    data = [
        {"object": "embedding", "index": index, "embedding": _written(vector, body.encoding_format)}
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return JSONResponse({"object": "list", "data": data, "model": serving.name, "usage": usage})


def _written(vector: np.ndarray, encoding: str | None) -> list[float] | str:
    if encoding == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return vector.tolist()
