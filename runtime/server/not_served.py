"""Paths of OpenAI's that are refused by name, with what to use in their place."""

from __future__ import annotations

from fastapi import APIRouter

from .errors import ServerError

router = APIRouter(prefix="/v1", tags=["OpenAI"])


@router.post("/embeddings", summary="Not served", include_in_schema=False)
async def embeddings() -> None:
    """Refuses embeddings: the exported graphs return logits, and no hidden states."""
    raise ServerError(501, "embeddings are not served: the ONNX folder has no hidden states", code="not_served")
