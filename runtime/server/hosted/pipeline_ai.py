"""The hosted service that the GPT-Neo-2.7B card shows, for its client pipeline-ai: PIPELINE_API_URL=http://HOST:PORT."""

from __future__ import annotations

import asyncio
import binascii
import dataclasses
import pickle
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from pydantic import BaseModel, ConfigDict
from starlette.responses import JSONResponse, Response

from neo_tf.errors import RequestError

from ...argument_kinds import WellFormedText
from ..errors import ServerError, bad_request, error_responses
from ..fields import Checked, Ignored, NotServed
from ..serving import Served, Serving
from ..uploads import owner_of
from .multipart_form import read_form
from .plain_pickle import read_plain_pickle
from .texts import HostedTexts

_LONGEST_NAME = 200  # characters of a file's name and path, which are only told back
_MOST_SHOWN = 20_000  # bytes of a file whose description holds it
_PROJECT = {"id": "neo-tf", "name": "neo-tf"}


def pipeline_ai_form(error: ServerError) -> dict[str, Any]:
    """An error as the client reads it."""
    return {"detail": {"message": error.message}}


@dataclass(frozen=True)
class StoredFile:
    """A file that was uploaded, or what came of a run.

    Args:
        name: What its sender calls it.
        path: Where its sender wants it to be. It is told back, and is no path here.
        hex: Its bytes, as hexadecimal digits.
        id: Its id, once it is kept.
    """

    name: str
    path: str
    hex: bytes
    id: str = ""

    def described(self, with_data: bool = False) -> dict[str, Any]:
        """The file as the client knows it.

        Args:
            with_data: Whether it comes with its data, however large they are.
        """
        size = len(self.hex) // 2
        data = self.hex.decode("ascii", "replace") if with_data or size < _MOST_SHOWN else None
        return {"name": self.name, "id": self.id, "path": self.path, "data": data, "file_size": size}


@dataclass(frozen=True)
class StoredData:
    """A file as the arguments of a run.

    Args:
        file: The file.
        created: When it became that, in ISO 8601.
    """

    file: StoredFile
    created: str

    def described(self, name: str, with_data: bool = False) -> dict[str, Any]:
        """The data of this id, as the client knows them."""
        return {"id": name, "hex_file": self.file.described(with_data), "created_at": self.created}


class DataBody(BaseModel):
    """A request of /v2/data: the description of a file that was uploaded."""

    model_config = ConfigDict(extra="ignore", strict=True)

    id: str


class RunBody(BaseModel):
    """A request of /v2/runs. Any pipeline's id means the one model."""

    model_config = ConfigDict(extra="forbid", strict=True)

    pipeline_id: Annotated[Any, Checked(WellFormedText(), "It is told back, and stands for the one model.")]
    data_id: str
    function_id: Annotated[Any, NotServed("there are no functions, and one model: give a pipeline_id")] = None
    data: Annotated[Any, NotServed("upload the arguments, and give their data_id")] = None
    blocking: Annotated[Any, Ignored()] = None
    compute_type: Annotated[Any, Ignored()] = None
    compute_requirements: Annotated[Any, Ignored()] = None


_DETAIL = {"type": "object", "properties": {"message": {"type": "string"}}}
_FILE_FORM = {
    "type": "object",
    "properties": {
        "file_path": {"type": "string", "description": "It is told back."},
        "file": {
            "type": "string",
            "format": "binary",
            "description": "A pickle of lists, dicts, texts, numbers, booleans and None, as hexadecimal digits.",
        },
    },
    "required": ["file"],
}
router = APIRouter(prefix="/v2", tags=["pipeline-ai"], responses=error_responses({"detail": _DETAIL}))


@router.get("/users/me", summary="Whose token it is")
async def me() -> dict[str, Any]:
    """Answers where the token is right: every token is the same user."""
    return {"id": "neo-tf", "username": "neo-tf", "email": ""}


@router.post(
    "/files/",
    summary="Upload a file",
    openapi_extra={"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _FILE_FORM}}}},
)
async def upload_file(serving: Served, http: HttpRequest) -> Response:
    """Keeps a file for some minutes, for its token alone."""
    form = await read_form(http)
    if "file" not in form:
        raise RequestError("the form has no field 'file'")
    path = form["file_path"].data.decode("utf-8", "replace") if "file_path" in form else "/"
    name = form["file"].filename or "file"
    file = _keep(StoredFile(name[:_LONGEST_NAME], path[:_LONGEST_NAME], form["file"].data), serving, http)
    return JSONResponse(file.described())


def _keep(file: StoredFile, serving: Serving, http: HttpRequest) -> StoredFile:
    """The file, kept, with its id."""
    return dataclasses.replace(file, id=serving.uploads.put(owner_of(http), file, len(file.hex)))


@router.get("/files/{file_id}", summary="A file of one's own")
async def file(file_id: str, serving: Served, http: HttpRequest) -> Response:
    """Returns a file with its data."""
    found = serving.uploads.get(owner_of(http), file_id, StoredFile)
    return JSONResponse(dataclasses.replace(found, id=file_id).described(with_data=True))


@router.post("/data", summary="Make an uploaded file the data of runs")
async def make_data(body: DataBody, serving: Served, http: HttpRequest) -> Response:
    """Keeps a file as the arguments of runs."""
    owner = owner_of(http)
    found = serving.uploads.get(owner, body.id, StoredFile)
    data = StoredData(dataclasses.replace(found, id=body.id), _now())
    return JSONResponse(data.described(serving.uploads.put(owner, data, len(found.hex))))


@router.get("/data/{data_id}", summary="Data of one's own")
async def data(data_id: str, serving: Served, http: HttpRequest) -> Response:
    """Returns the arguments of runs."""
    return JSONResponse(serving.uploads.get(owner_of(http), data_id, StoredData).described(data_id, with_data=True))


@router.post("/runs", summary="Continue the texts of uploaded data")
async def run(body: RunBody, serving: Served, http: HttpRequest) -> Response:
    """Continues texts, and answers when they have ended, `blocking` or not: the client does not ask again."""
    if body.pipeline_id is None:
        raise bad_request("pipeline_id must be a text, not null", "pipeline_id", "invalid_value")
    given = serving.uploads.get(owner_of(http), body.data_id, StoredData)
    begin = _now()
    texts = await asyncio.to_thread(_texts, given.file.hex, serving)
    result = await texts.run(http)
    stored = StoredFile("result", "/", pickle.dumps(result).hex().encode())
    return JSONResponse(
        {
            "id": f"run_{secrets.token_hex(16)}",
            "created_at": begin,
            "started_at": begin,
            "ended_at": _now(),
            "run_state": "complete",
            "blocking": bool(body.blocking),
            "runnable": _pipeline(body.pipeline_id[:_LONGEST_NAME]),
            "data": given.described(body.data_id),
            "result": _keep(stored, serving, http).described() if serving.uploads.may_hold(len(stored.hex)) else None,
            "result_preview": result,
            "error": None,
            "error_info": None,
        }
    )


def _texts(hex: bytes, serving: Serving) -> HostedTexts:
    """The texts that uploaded arguments ask for: a prompt or several, and options after them.

    Raises:
        ServerError, RequestError: The file holds something else.
    """
    try:
        pickled = binascii.unhexlify(hex)
    except ValueError:
        raise bad_request("the file is no text of hexadecimal digits", "file", "invalid_value") from None
    arguments = read_plain_pickle(pickled)
    if isinstance(arguments, str):
        arguments = [arguments]
    if not isinstance(arguments, list | tuple) or not 1 <= len(arguments) <= 2:
        raise RequestError("the arguments of a run must be [prompt] or [prompt, {options}]")
    prompt, *options = arguments
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(prompts, list | tuple):
        raise RequestError(f"a prompt must be a text, not {type(prompt).__name__}")
    given = options[0] if options and options[0] is not None else {}
    return HostedTexts.of(prompts, given, serving)


def _pipeline(name: str) -> dict[str, Any]:
    """What was run, as the client knows a pipeline."""
    parts: dict[str, Any] = {part: [] for part in ("variables", "functions", "models", "graph_nodes", "outputs")}
    return {"id": name, "type": "pipeline", "name": name, "project": _PROJECT, "deployed": True, **parts}


def _now() -> str:
    return datetime.now(UTC).isoformat()
