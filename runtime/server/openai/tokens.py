"""/tokenize, /detokenize and /tokenizer_info: the model's tokenizer, in vLLM's form."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict
from starlette.responses import JSONResponse, Response

from ...argument_kinds import Flag, Text, TokenIds
from ..errors import bad_request
from ..fields import Checked
from ..serving import Served, Serving
from .chat import ChatBody, chat_prompt
from .messages_field import Messages

router = APIRouter(tags=["tokenizer"])


class TokenizeBody(BaseModel):
    """A request of /tokenize: a prompt, or the messages of a chat."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = None
    prompt: Annotated[Any, Checked(Text(), "The text.")] = None
    messages: Annotated[Any, Messages()] = None
    add_special_tokens: Annotated[Any, Checked(Flag(), "Put the tokenizer's own special tokens around the text.")] = (
        None
    )
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeBody(BaseModel):
    """A request of /detokenize."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = None
    tokens: Annotated[Any, Checked(TokenIds(), "The token ids.")]


@router.post("/tokenize", summary="A text's token ids")
async def tokenize(body: TokenizeBody, serving: Served) -> Response:
    """Returns the token ids of a text, or of a chat."""
    serving.check_name(body.model)
    ids = await asyncio.to_thread(_ids, body, serving)
    answer: dict[str, Any] = {"count": len(ids), "max_model_len": serving.config.n_ctx, "tokens": ids}
    answer["token_strs"] = [serving.texts.text(token) for token in ids] if body.return_token_strs else None
    return JSONResponse(answer)


def _ids(body: TokenizeBody, serving: Serving) -> list[int]:
    if (body.prompt is None) == (body.messages is None):
        raise bad_request("give either prompt or messages", "prompt", "invalid_value")
    if body.messages is not None:
        chat = ChatBody(
            messages=body.messages,
            add_generation_prompt=body.add_generation_prompt,
            continue_final_message=body.continue_final_message,
        )
        return chat_prompt(chat, serving)
    adds = True if body.add_special_tokens is None else body.add_special_tokens
    return serving.tokenizer.encode(body.prompt, add_special_tokens=adds)


@router.post("/detokenize", summary="The text of token ids")
async def detokenize(body: DetokenizeBody, serving: Served) -> Response:
    """Returns the text of token ids, special tokens included."""
    serving.check_name(body.model)
    if body.tokens is None:
        raise bad_request("tokens must be token ids, not null", "tokens", "invalid_value")
    serving.check_ids(body.tokens, "tokens")
    return JSONResponse({"prompt": await asyncio.to_thread(serving.tokenizer.decode, body.tokens)})


@router.get("/tokenizer_info", summary="What the tokenizer is")
async def tokenizer_info(serving: Served) -> Response:
    """Returns the tokenizer's settings, as lm-evaluation-harness reads them."""
    tokenizer = serving.tokenizer
    template = serving.options.chat_template or tokenizer.chat_template
    return JSONResponse(
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "vocab_size": len(tokenizer),
            "model_max_length": min(tokenizer.model_max_length, serving.config.n_ctx),
            "chat_template": template,
            **tokenizer.special_tokens_map,
        }
    )
