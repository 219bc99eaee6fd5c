"""When a request ends: its tokens, its text, and its time."""

import time


class Stopping:
    """Takes a request's new tokens, writes their text, and says when it is to end.

    Call it with each new token, or with None where none could be chosen: it returns the text that is final with it,
    and sets the request's tokens, text and finish_reason.

    Args:
        request: a Request; its time runs from begin on.
        config: a GPTNeoConfig.
    """

    def __init__(self, request, config):
        self._request, self._clock = request, Clock(request.max_time)
        self._limit = request.limit(config)
        self._stream = _stream(request) if request.tokenizer else None

    def begin(self):
        """The request's time runs from here."""
        self._clock.begin()

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
        return "time" if self._clock.is_over else None


class Clock:
    """Says when max_time, in seconds or None, is over."""

    def __init__(self, max_time):
        self._max_time, self._begin = max_time, None

    def begin(self):
        """It runs from here."""
        self._begin = time.perf_counter()

    @property
    def is_over(self):
        """Whether it is."""
        return self._max_time is not None and time.perf_counter() - self._begin > self._max_time


def stop_test(request):
    """A function that says of a list of new tokens whether the last one completes a stop string; None without any."""
    if not request.stop_strings:
        return None
    # Tokens that a stop string may be in: a character can take four.
    tail = 4 * max(map(len, request.stop_strings))
    prompt = [int(token) for token in request.prompt]

    def stops(tokens):
        before = [*prompt, *tokens[:-1]][-tail:]
        stream = request.tokenizer.stream(before, request.stop_strings)
        stream(tokens[-1])
        return stream.stopped

    return stops


def text_of(request, tokens):
    """The text of new tokens after a request's prompt, to their end or a stop string's."""
    stream = _stream(request)
    return "".join([*map(stream, tokens), stream.finish()])


def _stream(request):
    """A TextStream of what follows a request's prompt."""
    return request.tokenizer.stream(request.prompt, request.stop_strings, request.include_stop_str_in_output)
