"""When a request ends: its tokens, its text, and its time."""

import time


class Stopping:
    """Takes a request's new tokens, writes their text, and says when it is to end.

    Call it with each new token, or with None where none could be chosen: it returns the text that is final with it,
    and sets the request's tokens, text and finish_reason.

    Args:
        request: a runtime.engine.Request; its time runs from begin on.
        n_ctx: of the model.
    """

    def __init__(self, request, n_ctx):
        self._request, self._begin = request, None
        room = n_ctx - len(request.prompt)
        self._limit = room if request.max_new_tokens is None else min(room, request.max_new_tokens)
        self._stream = None
        if request.tokenizer:
            strings, include = request.stop_strings, request.include_stop_str_in_output
            self._stream = request.tokenizer.stream(request.prompt, strings, include)

    def begin(self):
        """The request's time runs from here."""
        self._begin = time.perf_counter()

    def __call__(self, token):
        """The text that is final with this token."""
        request, stream, piece = self._request, self._stream, ""
        if token is not None:
            request.tokens.append(token)
            piece = stream(token) if stream else ""
        request.finish_reason = self._reason(token)
        if stream and request.finish_reason:
            piece += stream.finish()
        request.text += piece
        return piece

    def _reason(self, token):
        request = self._request
        if token is None or token in request.stop_token_ids or (self._stream and self._stream.stopped):
            return "stop"
        if len(request.tokens) >= self._limit:
            return "length"
        if request.max_time is not None and time.perf_counter() - self._begin > request.max_time:
            return "time"
        return None
