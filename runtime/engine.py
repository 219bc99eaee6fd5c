"""The one decode loop: any number of sequences, each at its own length and with its own request."""

import contextlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from neo_tf.errors import EngineError, RequestError, one_line
from runtime.chooser import Chooser
from runtime.sampling import SamplingOptions, check_number
from runtime.stopping import Stopping
from runtime.tokenizer import Tokenizer

# Tokens: so long may a prompt hold up the sequences that are running. Longer chunks are no faster.
PREFILL_CHUNK = 256


@dataclass
class Request:
    """One sequence to be continued.

    Args:
        prompt: token ids, at least one.
        max_new_tokens: stops after so many; None goes on to the end of the context.
        min_new_tokens: the stop tokens are not chosen before so many.
        stop_token_ids: ids that end the text; they are kept as its last token.
        sampling: a SamplingOptions.
        on_token: called as on_token(token_id) with each new token.
        max_time: seconds after which it ends, from the beginning of its prefill.
        tokenizer: a runtime.tokenizer.Tokenizer to write the text with; without one there is none.
        stop_strings: texts that end the text: see include_stop_str_in_output. One may begin in the prompt.
        include_stop_str_in_output: as in transformers, the text goes on to the end of the last token. Otherwise it
            ends before the stop string.
        on_text: called as on_text(text) for each new token with the text that is final with it, which may be empty.
        logprobs: keeps each token's log-probability, and the so many most likely ones', before all processors.
        prompt_logprobs: the same of the prompt's tokens after its first; its prefill is slower then.
        output_logits, output_scores: keeps each token's logits before all processors, or as they were drawn by.

    Attributes:
        tokens: new token ids so far.
        text: the new text so far, as far as it is final.
        finish_reason: None while it runs; "stop" after a stop token or string, or where the processors leave no token
            possible; "length" at a limit, "time" after max_time, "cancelled", or "error".
        error: what went wrong, of finish_reason "error": an EngineError, or what a function of its own raised.
        cancelled: whether it is to end before the next step; see Engine.cancel.
        token_logprobs, prompt_token_logprobs: a float for each token.
        top_logprobs, prompt_top_logprobs: {token id: float} for each token, most likely first.
        logits, scores: float32 [n_vocab] for each token.
    """

    prompt: list
    max_new_tokens: int | None = None
    min_new_tokens: int = 0
    stop_token_ids: tuple = ()
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    on_token: Callable | None = None
    max_time: float | None = None
    tokenizer: Tokenizer | None = None
    stop_strings: tuple = ()
    include_stop_str_in_output: bool = True
    on_text: Callable | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    output_logits: bool = False
    output_scores: bool = False
    tokens: list = field(default_factory=list, init=False)
    text: str = field(default="", init=False)
    finish_reason: str | None = field(default=None, init=False)
    error: Exception | None = field(default=None, init=False)
    cancelled: bool = field(default=False, init=False)
    token_logprobs: list = field(default_factory=list, init=False)
    top_logprobs: list = field(default_factory=list, init=False)
    prompt_token_logprobs: list = field(default_factory=list, init=False)
    prompt_top_logprobs: list = field(default_factory=list, init=False)
    logits: list = field(default_factory=list, init=False)
    scores: list = field(default_factory=list, init=False)


class _Running:
    """A request in its slot: how much of it is in the cache, how its tokens are chosen, and when it ends."""

    def __init__(self, request, slot, n_ctx):
        self.request, self.slot = request, slot
        self.cached = 0
        self.chooser, self.stopping = Chooser(request, n_ctx), Stopping(request, n_ctx)


class Engine:
    """Decodes requests over the slots of one Session; the same tokens alone as in company.

    Args:
        session: a runtime.session.Session.

    Example:
        >>> engine = Engine(Session("models/onnx", slots=4))
        >>> requests = [Request([464, 3290], max_new_tokens=20), Request([818, 257], max_new_tokens=5)]
        >>> engine.generate(requests)
    """

    def __init__(self, session):
        self.session, self.config = session, session.config
        self._waiting, self._prefilling, self._running = deque(), deque(), {}
        self._free = sorted(range(session.slots), reverse=True)
        self._any_cancelled = False
        self.ended = []  # requests that ended in the last step

    def generate(self, requests):
        """Runs requests to their ends and returns them. All are checked before the first one starts.

        Raises:
            RequestError: see check.
        """
        for request in requests:
            self.check(request)
        for request in requests:
            self._queue(request)
        try:
            ours, busy = {id(request) for request in requests}, True
            while busy:
                busy = self.step()
                for request in self.ended:
                    if request.error and id(request) in ours:
                        raise request.error
        except BaseException:  # Ctrl-C, an error of on_token or of the session: leave nothing of these behind
            self._abandon(requests)
            raise
        return requests

    def submit(self, request):
        """Queues a request, for step to run. Raises RequestError as check does."""
        self.check(request)
        self._queue(request)

    def _queue(self, request):
        self._waiting.append(request)
        if request.cancelled:  # by now
            self._any_cancelled = True

    def cancel(self, request):
        """Ends a request before the next step, as "cancelled"; may be called from any thread, and at any time."""
        request.cancelled = True
        self._any_cancelled = True  # after it: a step that sees this sees that

    def check(self, request):
        """Raises RequestError where a request cannot be served: its prompt's ids or lengths."""
        if request.tokens or request.finish_reason:
            raise RequestError("the request has run already: make a new one")
        prompt, n_ctx, n_vocab = request.prompt, self.config.n_ctx, self.config.n_vocab
        if len(prompt) == 0:
            raise RequestError("the prompt is empty: it needs at least one token")
        try:
            ids = np.asarray(prompt)
        except ValueError:  # rows of unequal lengths
            ids = np.asarray(None)
        if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
            raise RequestError("a prompt's token ids must be a flat sequence of integers")
        outside = np.flatnonzero((ids < 0) | (ids >= n_vocab))
        if outside.size:
            where = int(outside[0])
            raise RequestError(f"token id {ids[where]} at position {where} is outside the vocabulary of {n_vocab}")
        if len(prompt) >= n_ctx:
            raise RequestError(
                f"the prompt has {len(prompt)} tokens, and the model's context n_ctx is {n_ctx}: no room left"
            )
        if request.max_new_tokens is not None:
            if request.max_new_tokens < 1:
                raise RequestError(f"max_new_tokens must be at least 1, not {request.max_new_tokens}")
            if len(prompt) + request.max_new_tokens > n_ctx:
                raise RequestError(
                    f"a prompt of {len(prompt)} tokens and max_new_tokens {request.max_new_tokens} exceed n_ctx {n_ctx}"
                )
        for token in request.stop_token_ids:
            if not 0 <= token < n_vocab:
                raise RequestError(f"stop token id {token} is outside the vocabulary of {n_vocab}")
        request.sampling.check_vocabulary(n_vocab)
        _check_ends(request)

    def step(self):
        """Admits what fits, prefills one chunk of one prompt, and decodes one token of every running sequence.

        Where a run of the session fails, the requests in it end with an error, and the others go on.

        Returns:
            Whether anything is left to do.
        """
        self.ended = []
        if self._any_cancelled:
            self._any_cancelled = False
            self._drop_cancelled()
        while self._waiting and self._free:
            self._prefilling.append(_Running(self._waiting.popleft(), self._free.pop(), self.config.n_ctx))
        if self._prefilling:
            with self._failing([self._prefilling[0]]):
                self._prefill_chunk(self._prefilling[0])
        if self._running:
            self._decode()
        return bool(self._waiting or self._prefilling or self._running)

    def _drop_cancelled(self):
        held = [one.request for one in (*self._prefilling, *self._running.values())]
        cancelled = [request for request in (*self._waiting, *held) if request.cancelled]
        self._abandon(cancelled)
        for request in cancelled:
            request.finish_reason = "cancelled"
        self.ended += cancelled

    @contextlib.contextmanager
    def _failing(self, running):
        """Ends the requests of a run that fails, in place of the engine."""
        try:
            yield
        except Exception as error:
            requests = [one.request for one in running]
            for request in requests:
                failure = EngineError(f"a step of {len(requests)} requests failed: {one_line(error)}")
                failure.__cause__ = error
                self._fail(request, failure)

    def _fail(self, request, error):
        self._abandon([request])
        request.error, request.finish_reason = error, "error"
        self.ended.append(request)

    def _abandon(self, requests):
        """Takes requests out of the queue and their slots."""
        ours = {id(request) for request in requests}
        self._waiting = deque(request for request in self._waiting if id(request) not in ours)
        held = [*self._prefilling, *self._running.values()]
        for running in held:
            if id(running.request) in ours:
                self._running.pop(running.slot, None)
                self._release(running.slot)
        self._prefilling = deque(running for running in self._prefilling if id(running.request) not in ours)

    def _release(self, slot):
        self._free.append(slot)
        self._free.sort(reverse=True)

    def _prefill_chunk(self, running):
        prompt = running.request.prompt
        if running.cached == 0:
            running.stopping.begin()
        chunk = prompt[running.cached : running.cached + PREFILL_CHUNK]
        last = running.cached + len(chunk) == len(prompt)
        wanted = running.request.prompt_logprobs is not None
        logits = self.session.prefill(running.slot, chunk, running.cached, keep=0 if wanted else 1 if last else None)
        if wanted:
            running.chooser.see_prompt(running.cached, logits)
        running.cached += len(chunk)
        if last:
            self._prefilling.popleft()
            self._running[running.slot] = running
            self._choose(running, logits[-1:])

    def _decode(self):
        for first, end in self._ranges():
            # Idle slots inside the range are stepped along: their rows are nobody's, and cost next to nothing.
            tokens, past = np.zeros(end - first, np.int64), np.zeros(end - first, np.int64)
            running = {slot: self._running[slot] for slot in range(first, end) if slot in self._running}
            for slot, one in running.items():
                tokens[slot - first], past[slot - first] = one.request.tokens[-1], one.cached
            with self._failing(running.values()):
                logits = self.session.decode(first, tokens, past)
            if any(one.request.error for one in running.values()):
                continue
            for slot, one in running.items():
                one.cached += 1
                self._choose(one, logits[slot - first : slot - first + 1])

    def _ranges(self):
        """Contiguous ranges of slots that cover all running ones and no half-prefilled one.

        An idle step would compact a half-prefilled slot's windowed caches too early.
        """
        held = {waiting.slot for waiting in self._prefilling if waiting.cached}
        ranges, first, last = [], None, None
        for slot in range(max(self._running) + 1):
            if slot in self._running:
                first, last = slot if first is None else first, slot
            elif slot in held and first is not None:
                ranges.append((first, last + 1))
                first = None
        return [*ranges, (first, last + 1)] if first is not None else ranges

    def _choose(self, running, logits):
        """Takes the next token from logits [1, n_vocab], and ends the request where it is due."""
        request = running.request
        try:
            token = running.chooser(logits)
            text = running.stopping(token)
            if request.finish_reason:
                del self._running[running.slot]
                self._release(running.slot)
            if request.on_token and token is not None:
                request.on_token(token)
            if request.on_text:
                request.on_text(text)
            if request.finish_reason:
                self.ended.append(request)
        except Exception as error:  # of a function of the request's own
            self._fail(request, error)


def _check_ends(request):
    """Raises RequestError where a request's end, or what it is to keep, makes no sense."""
    if request.max_time is not None:
        check_number("max_time", request.max_time, float, lambda value: value > 0, "be greater than 0")
    for name in ("logprobs", "prompt_logprobs"):
        if getattr(request, name) is not None:
            check_number(name, getattr(request, name), int, lambda value: value >= 0, "not be negative")
    stops = request.stop_strings
    if not isinstance(stops, list | tuple) or not all(isinstance(stop, str) and stop for stop in stops):
        raise RequestError("stop_strings must be a list of texts, none of them empty")
    if (request.stop_strings or request.on_text) and not request.tokenizer:
        raise RequestError("stop_strings and on_text need a tokenizer to write the text with")
