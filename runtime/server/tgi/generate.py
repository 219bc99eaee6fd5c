"""Text Generation Inference's protocol, for huggingface_hub's InferenceClient: /generate, /generate_stream, /info."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from starlette.responses import Response

import neo_tf

from ..answering import answer
from ..errors import bad_request
from ..serving import Served, Serving
from ..streaming import STREAMED
from .answer import TgiAnswer
from .body import GenerateBody
from .errors import TGI_ERRORS

router = APIRouter(tags=["Text Generation Inference"], responses=TGI_ERRORS)


@router.post("/", summary="Continue a text: whole, or as a stream where `stream` is true", responses=STREAMED)
async def compatible(body: GenerateBody, serving: Served, http: HttpRequest) -> Response:
    """Continues a text, as hosted inference endpoints do: without a stream, the answer is a list of one."""
    return await _answer(body, serving, http, streams=bool(body.stream), in_list=True)


@router.post("/generate", summary="Continue a text")
async def generate(body: GenerateBody, serving: Served, http: HttpRequest) -> Response:
    """Continues a text, and answers when it has ended."""
    if body.stream:
        raise bad_request("/generate answers whole: ask /generate_stream for a stream", "stream")
    return await _answer(body, serving, http, streams=False)


@router.post("/generate_stream", summary="Continue a text as a stream of tokens", responses=STREAMED)
async def generate_stream(body: GenerateBody, serving: Served, http: HttpRequest) -> Response:
    """Continues a text, with an event for each token."""
    return await _answer(body, serving, http, streams=True)


async def _answer(
    body: GenerateBody, serving: Serving, http: HttpRequest, streams: bool, in_list: bool = False
) -> Response:
    if body.inputs is None:
        raise bad_request("inputs must be a text, not null", "inputs", "invalid_value")
    return await answer(lambda: TgiAnswer(body, serving, streams, in_list), serving, http, body.inputs, streams)


@router.get("/info", summary="What is served, in Text Generation Inference's form")
async def info(serving: Served) -> dict[str, Any]:
    """Returns the model's name and the server's limits."""
    session = serving.pipeline.session
    context = serving.config.n_ctx
    return {
        "model_id": serving.name,
        "model_sha": None,
        "model_dtype": session.precision,
        "model_device_type": session.device,
        "model_pipeline_tag": "text-generation",
        "max_concurrent_requests": serving.admission.limit,
        "max_best_of": serving.admission.limit,
        "max_input_tokens": context,
        "max_total_tokens": context + 1,  # the last token is not run, and needs no position
        "max_batch_size": session.slots,
        "router": "neo-tf",
        "version": neo_tf.__version__,
        "sha": None,
        "docker_label": None,
    }
