"""The model behind the server: what every protocol's routes work with."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends
from fastapi import Request as HttpRequest

from neo_tf.errors import RequestError

from ..device.encoder import Encoder
from ..engine.service import Service
from .admission import Admission
from .call import Call
from .embedder import Embedder
from .errors import ServerError, bad_request
from .mailbox import Mailbox
from .metrics import Metrics
from .npu_tasks import Tasks
from .text_filter import Judge, TextFilter
from .token_texts import TokenTexts
from .uploads import Uploads

if TYPE_CHECKING:
    from ..arguments import GenerateArguments
    from ..engine.request import Request
    from ..pipeline import Prompt, TextGenerationPipeline
    from ..tokenizer import Tokenizer
    from .api_keys import ApiKeys

# What clients of Text Generation Inference send for "the model that is served".
_ANY_MODEL = ("tgi", "dummy")
_prompt_log = logging.getLogger("neo_tf.prompts")


@dataclass(frozen=True)
class ServerOptions:
    """How a server behaves.

    Args:
        names: The names that the model has for clients; the first one is written into answers.
        max_queue: The number of sequences that may wait for a slot.
        max_body: The largest body of a request, in bytes.
        max_logprobs: The largest number of alternatives for each token; where None each protocol's own.
        keys: Who may use it; anybody where None.
        chat_template: A Jinja template in place of the model's own.
        judge: Judges each text before it is sent; see TextFilter.
        log_prompts: Whether prompts are logged.
        body_timeout: Seconds in which a request's body must have come.
        send_timeout: Seconds after which a client that reads nothing of its answer is given up.
    """

    names: tuple[str, ...] = ("model",)
    max_queue: int = 256
    max_body: int = 4_000_000
    max_logprobs: int | None = None
    keys: ApiKeys | None = None
    chat_template: str | None = None
    judge: Judge | None = None
    log_prompts: bool = False
    body_timeout: float = 60
    send_timeout: float = 60


class Serving:
    """A pipeline's model, with its engine in a thread, for the routes of all protocols.

    Args:
        pipeline: The model. Nobody else may use it meanwhile.
        options: How the server behaves.

    Attributes:
        admission: How many sequences are in the server.
        metrics: What is counted.
        service: The engine in its thread.
        embedder: What computes hidden states, in a thread of its own.
        uploads: What clients have sent to be used by their next requests.
        tasks: What runs in the background.
        created: When it was made, in seconds since 1970.
        texts: What single tokens are written as.

    Raises:
        RequestError: The model has no tokenizer.
        ConfigError: A setting of the model's that is not served.
    """

    def __init__(self, pipeline: TextGenerationPipeline, options: ServerOptions) -> None:
        if pipeline.tokenizer is None:
            raise RequestError("the model has no tokenizer, which a server needs: name one with --tokenizer")
        pipeline.settings.check()
        self.pipeline = pipeline
        self.options = options
        self.tokenizer: Tokenizer = pipeline.tokenizer
        self.config = pipeline.config
        self.texts = TokenTexts(self.tokenizer)
        self.service = Service(pipeline.engine)
        self.admission = Admission(pipeline.session.slots, options.max_queue)
        self.metrics = Metrics(self.service, pipeline.engine, self.admission)
        self.embedder = Embedder(self._load_encoder, self.admission)
        self.uploads = Uploads("upload")
        self.tasks = Tasks()
        self.created = int(time.time())
        self._mailbox: Mailbox | None = None
        self._text_filter = TextFilter(options.judge, self.tokenizer) if options.judge else None

    @property
    def name(self) -> str:
        """The model's name in answers."""
        return self.options.names[0]

    def check_name(self, name: str | None) -> None:
        """Raises ServerError, 404, where a request names a model that is not served."""
        if name is not None and name not in self.options.names and name not in _ANY_MODEL:
            raise ServerError(
                404,
                f"the model {name!r} does not exist: this server has {', '.join(self.options.names)}",
                "model",
                "model_not_found",
            )

    def requests(
        self,
        prompt: Prompt,
        options: GenerateArguments,
        last: int | None = None,
        prompt_field: str = "prompt",
        limit_field: str = "max_tokens",
    ) -> list[Request]:
        """The Requests that continue one prompt, checked as far as the engine checks them.

        It may take long for a long text: call it in a thread.

        Args:
            prompt: A text, token ids, or a chat.
            options: The arguments of the request.
            last: The number of its last tokens that are kept; all where None.
            prompt_field, limit_field: What the protocol calls the prompt, and the number of new tokens.

        Raises:
            ServerError: They cannot be served, because of the prompt's tokens or their number.
            RequestError: They cannot be served for another reason.
        """
        self.admission.check(options.requests_of_each)
        if last is None and isinstance(prompt, str) and not options.may_cut_prompt:
            self.check_length(prompt, prompt_field)
        requests = self.pipeline.requests(prompt, options)
        ids = requests[0].prompt
        if last is not None and len(ids) > last:
            ids = ids[-last:]
            requests = self.pipeline.requests(ids, options)
        self.check_ids(ids, prompt_field)
        new = requests[0].max_new_tokens or 1
        if len(ids) + new > self.config.n_ctx + 1:  # the last token is not run, and needs no position
            raise bad_request(
                f"the prompt has {len(ids)} tokens and {new} new ones are asked for, but the model's context has "
                f"{self.config.n_ctx}",
                limit_field if len(ids) <= self.config.n_ctx else prompt_field,
                "context_length_exceeded",
            )
        for request in requests:
            self.service.check(request)
        return requests

    def check_length(self, text: str, field: str) -> None:
        """Raises ServerError, which names the field, where a text has too many tokens whatever they are.

        Tokenising takes seconds for some texts of megabytes. Texts that may fit are left to be tokenised.
        """
        longest = self.tokenizer.longest_token
        if longest and len(text) > longest * self.config.n_ctx:  # bytes are at least as many as characters
            raise bad_request(
                f"{field}: a text of {len(text)} characters has more tokens than the model's context, which has "
                f"{self.config.n_ctx}",
                field,
                "context_length_exceeded",
            )

    def check_ids(self, ids: Sequence[int], field: str) -> None:
        """Raises ServerError, which names the field, where a token id is outside the vocabulary."""
        for place, token in enumerate(ids):
            if not 0 <= token < self.config.n_vocab:
                told = f"token id {token} at position {place} is outside the vocabulary of {self.config.n_vocab}"
                raise bad_request(f"{field}: {told}", field, "invalid_value")

    def log_prompt(self, http: HttpRequest, prompt: object) -> None:
        """Writes a prompt into the log, where that was asked for."""
        if self.options.log_prompts:
            _prompt_log.info("prompt", extra={"fields": {"request_id": http.state.request_id, "prompt": prompt}})

    def start(self, requests: Sequence[Request], streams: bool = False) -> Call:
        """Submits checked requests of one client; call it in the loop.

        Raises:
            ServerError: They are not taken in; see Call.start.
        """
        loop = asyncio.get_running_loop()
        if self._mailbox is None or self._mailbox.loop is not loop:
            self._mailbox = Mailbox(loop)
        return Call.start(
            requests, self.service, self.admission, self._mailbox, self.metrics, streams, self._text_filter
        )

    def close(self) -> None:
        """Ends all sequences as cancelled, and the engine's thread. It waits for the step that runs."""
        self.admission.draining = True
        self.embedder.close()
        self.service.close()

    def _load_encoder(self) -> Encoder:
        session = self.pipeline.session
        device = session.device if session.device == "cpu" else f"{session.device}:{session.device_id}"
        return Encoder(session.folder, device, session.threads, session.precision)


async def _of(request: HttpRequest) -> Serving:  # not in a thread, which each request would wait for
    return request.app.state.serving


Served = Annotated[Serving, Depends(_of)]  # a route's parameter
