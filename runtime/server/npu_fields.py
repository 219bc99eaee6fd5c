"""What npu, the client of the GPT-Neo-125M card, sends with a prediction: as JSON, or in a form with its data."""

from __future__ import annotations

import json
from typing import Annotated, Any

from fastapi import Request as HttpRequest
from pydantic import BaseModel, ConfigDict, ValidationError

from neo_tf.errors import RequestError

from ..argument_kinds import Text, WellFormedText
from .field_errors import field_error
from .fields import Checked, Ignored, NotServed
from .multipart_form import FormPart, read_form

_NO_SCRIPTS = NotServed("no code of others is run", ([],))
_NO_SLICES = NotServed("all of the data are continued: send those prompts that are meant")


class TokenBody(BaseModel):
    """A request of Token."""

    model_config = ConfigDict(extra="ignore", strict=True)

    token: Annotated[Any, Checked(Text(), "The token.")] = None
    project_name: Annotated[Any, Checked(WellFormedText(), "A name, which is told back.")] = None


class SyncPredictFields(BaseModel):
    """What comes with the data of a prediction in deployment mode."""

    model_config = ConfigDict(extra="forbid", strict=True)

    modelId: Annotated[Any, Ignored()] = None
    input_kwargs: dict[str, Any] | None = None
    scripts: Annotated[Any, _NO_SCRIPTS] = None
    hash: Annotated[Any, Ignored()] = None
    collection: Annotated[Any, Ignored()] = None
    project: Annotated[Any, Ignored()] = None
    generic_file: Annotated[Any, Ignored()] = None


class PredictBody(BaseModel):
    """A request of Predict: data that were uploaded, and how they are continued. Any model id means the one model."""

    model_config = ConfigDict(extra="forbid", strict=True)

    dataId: str | None = None
    data_name: str | None = None
    input_kwargs: dict[str, Any] | None = None
    scripts: Annotated[Any, _NO_SCRIPTS] = None
    data_start: Annotated[Any, _NO_SLICES] = None
    data_end: Annotated[Any, _NO_SLICES] = None
    data_hub_ds: Annotated[Any, NotServed("data of a hub are not fetched", (False,))] = None
    modelId: Annotated[Any, Ignored()] = None
    model_name: Annotated[Any, Ignored()] = None
    model_attr: Annotated[Any, Ignored()] = None
    task_id: Annotated[Any, Ignored()] = None
    project: Annotated[Any, Ignored()] = None


async def read_prediction(http: HttpRequest) -> tuple[SyncPredictFields, bytes]:
    """The fields and the data of a form.

    Raises:
        ServerError, RequestError: It is not such a form.
    """
    form = await read_form(http)
    try:
        fields = SyncPredictFields.model_validate(json.loads(_part(form, "json").data))
    except ValidationError as error:
        raise field_error(error.errors()) from None
    except (ValueError, RecursionError):
        raise RequestError("the form's field 'json' is not valid JSON") from None
    return fields, _part(form, "file").data


async def read_upload(http: HttpRequest) -> bytes:
    """The data of a form.

    Raises:
        RequestError: It has none.
    """
    return _part(await read_form(http), "file").data


def _part(form: dict[str, FormPart], name: str) -> FormPart:
    part = form.get(name)
    if part is None:
        raise RequestError(f"the form has no field {name!r}")
    return part
