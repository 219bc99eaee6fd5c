"""What operators ask: is it alive, is it ready, what does it measure, which version is it."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import JSONResponse, Response

import neo_tf

from .errors import engine_stopped, openai_form, shutting_down
from .serving import Served

router = APIRouter(tags=["operations"])


@router.get("/health", summary="Whether the engine runs: 200, or 503 with the reason")
async def health(serving: Served) -> Response:
    """Says whether the process is to be kept."""
    failure = serving.service.failure
    if failure is not None:
        return JSONResponse(openai_form(engine_stopped(failure)), 503)
    return JSONResponse({"status": "ok"})


@router.get("/ready", summary="Whether new requests are taken: 200, or 503 with the reason")
async def ready(serving: Served) -> Response:
    """Says whether requests are to be sent here."""
    if serving.admission.draining:
        return JSONResponse(openai_form(shutting_down()), 503)
    return await health(serving)


_METRICS: dict[int | str, dict[str, Any]] = {200: {"content": {CONTENT_TYPE_LATEST: {"schema": {"type": "string"}}}}}


@router.get("/metrics", summary="Prometheus' metrics", response_class=Response, responses=_METRICS)
async def metrics(serving: Served) -> Response:
    """Returns counters, gauges and histograms."""
    return Response(serving.metrics.text(), media_type=CONTENT_TYPE_LATEST)


@router.get("/version", summary="neo-tf's version")
async def version() -> dict[str, Any]:
    """Returns the version."""
    return {"version": neo_tf.__version__}
