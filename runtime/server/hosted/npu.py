"""The hosted service that the GPT-Neo-125M card shows, for its client npu: BASE_URL=http://HOST:PORT/npu/."""

from __future__ import annotations

import asyncio
import hashlib
import sys
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from starlette.responses import JSONResponse, PlainTextResponse, Response

from neo_tf.errors import RequestError

from ..api_keys import refused
from ..errors import ServerError, bad_request, error_of, error_responses
from ..serving import Served, Serving
from ..uploads import owner_of
from .npu_body import PredictBody, TokenBody, read_prediction, read_upload
from .npu_tasks import Tasks
from .npz_texts import read_npz_texts
from .texts import HostedTexts

TOKEN_PATH = "/npu/Token"

_TEXT = {"type": "string"}
_TASK_TYPE = "Predict"
_LONGEST_NAME = 200  # characters of a project's name


def npu_form(error: ServerError) -> dict[str, Any]:
    """An error as the client reads it, which shows the text."""
    return {"error": error.message, "code": error.code or error.type}


@dataclass(frozen=True)
class Prompts:
    """Texts that were uploaded.

    Args:
        texts: The texts.
        digest: The MD5 of the file that they came in, by which the client asks whether they are here.
    """

    texts: list[str]
    digest: str


def _form_of(**parts: str) -> dict[str, Any]:
    """The schema of a route that takes a form."""
    file = {"type": "string", "format": "binary", "description": parts["file"]}
    properties = {"file": file, "json": {"type": "string", "description": parts["json"]}}
    schema = {"type": "object", "properties": properties, "required": list(parts)}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


router = APIRouter(prefix="/npu", tags=["npu"], responses=error_responses({"error": _TEXT, "code": _TEXT}))


@router.post("/Token", summary="Check a token")
async def token(body: TokenBody, serving: Served) -> str:
    """Checks the token in the body, and returns the project, which is a name alone here."""
    keys = serving.options.keys
    if keys and not keys.accepts(body.token or ""):
        raise refused("is wrong" if body.token else "is needed: give it to npu.api")
    return (body.project_name or "")[:_LONGEST_NAME]


@router.post(
    "/SyncPredict",
    summary="Continue texts, in the client's deployment mode",
    openapi_extra=_form_of(
        file="The texts: an .npz of arrays of texts, as numpy.savez writes them.",
        json="A JSON object: `modelId` (any), `input_kwargs` (arguments of generation), `scripts` (empty).",
    ),
)
async def sync_predict(serving: Served, http: HttpRequest) -> Response:
    """Continues texts, and answers when they have ended. What is wrong with them is the result of a failed state."""
    fields, data = await read_prediction(http)
    try:
        texts = await asyncio.to_thread(_texts_of_file, data, fields.input_kwargs, serving)
    except (ServerError, RequestError) as error:
        return _failure(http, error_of(error))
    return JSONResponse({"state": "COMPLETE", "result": await texts.run(http)})


def _texts_of_file(data: bytes, given: dict[str, Any] | None, serving: Serving) -> HostedTexts:
    return HostedTexts.of(read_npz_texts(data), given or {}, serving)


def _failure(http: HttpRequest, told: ServerError) -> Response:
    """The answer that the client raises with its reason; of an error status it shows the reason alone."""
    http.scope["state"]["error"] = told
    return JSONResponse({"state": "FAILURE", "result": told.message})


@router.get("/Hash", summary="Whether data are here", responses={204: {"description": "They are not here"}})
async def find_data(hash: str, serving: Served, http: HttpRequest) -> Response:
    """Returns the id of data of this MD5 that the same token has uploaded, or 204."""
    name = serving.uploads.find(owner_of(http), Prompts, lambda prompts: prompts.digest == hash)
    if name is None:
        return Response(status_code=204)
    return JSONResponse({"id": name, "message": "the data are here already"})


@router.post(
    "/UploadData",
    summary="Upload texts",
    openapi_extra=_form_of(
        file="The texts: an .npz of arrays of texts, as numpy.savez writes them.", json="What the client says of them."
    ),
)
async def upload_data(serving: Served, http: HttpRequest) -> Response:
    """Keeps texts for some minutes, for their token alone, and returns their id."""
    data = await read_upload(http)
    prompts = await asyncio.to_thread(_prompts, data)
    name = serving.uploads.put(owner_of(http), prompts, sum(map(sys.getsizeof, prompts.texts)))
    return JSONResponse({"id": name, "message": f"{len(prompts.texts)} texts were taken"})


def _prompts(data: bytes) -> Prompts:
    return Prompts(read_npz_texts(data), hashlib.md5(data, usedforsecurity=False).hexdigest())


@router.post(
    "/Predict", summary="Continue texts that were uploaded, in the background", response_class=PlainTextResponse
)
async def predict(body: PredictBody, serving: Served, http: HttpRequest) -> Response:
    """Begins a task, and returns its id as a text."""
    owner = owner_of(http)
    name = body.dataId or body.data_name
    if not name:
        raise bad_request("dataId is missing: upload the data first", "dataId", "missing_field")
    data = serving.uploads.get(owner, name, Prompts)
    serving.part(Tasks).check(owner)
    texts = await asyncio.to_thread(HostedTexts.of, data.texts, body.input_kwargs or {}, serving)
    serving.log_prompt(http, texts.prompts)
    return PlainTextResponse(serving.part(Tasks).start(owner, texts, serving.start(texts.requests)))


@router.get("/status/{task_id}", summary="How far a task is")
async def status(task_id: str, serving: Served, http: HttpRequest, include_result: str = "") -> Response:
    """Returns a task's state and progress, and with include_result=True its texts or why it failed."""
    task = serving.part(Tasks).get(owner_of(http), task_id)
    found = {"state": task.state, "taskType": _TASK_TYPE, "progress": task.progress}
    if include_result.lower() in ("true", "1"):
        found["result"] = task.result
    return JSONResponse(found)
