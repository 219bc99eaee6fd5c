"""One request's choices: processors, sampler and log-probabilities around one row of logits."""

import numpy as np

from ..sampling.processors import make_processors
from ..sampling.sampler import Sampler
from ..sampling.warpers import log_softmax


class Chooser:
    """Chooses the tokens of one request, and keeps on it what it asked for of the logits.

    Call it with float32 [1, n_vocab] for each next token: it returns an int, or None where the processors leave none.

    Args:
        request: a Request.
        config: a GPTNeoConfig.
    """

    def __init__(self, request, config):
        self._request, length = request, len(request.prompt)
        limit = length + request.limit(config)
        self._processors = make_processors(
            request.sampling, length, limit, request.stop_token_ids, request.min_new_tokens
        )
        self._sampler = Sampler(request.sampling)
        if self._processors:
            self._history = np.empty((1, limit), np.int64)  # [1, length so far] is in use
            self._history[0, :length] = request.prompt
            self._known = length

    def __call__(self, logits):
        """The next token."""
        request = self._request
        scores = self._process(logits) if self._processors else logits
        if self._processors and scores.max() == -np.inf:
            return None
        tokens, drawn_by, ids = self._sampler(scores)
        token = int(tokens[0])
        if request.logprobs is not None:
            chosen, top = log_probabilities(logits[0], token, request.logprobs)
            request.token_logprobs.append(chosen)
            request.top_logprobs.append(top)
        if request.output_logits:
            request.logits.append(logits[0].copy())
        if request.output_scores:
            request.scores.append(self._whole(drawn_by, ids, logits.shape[1]))
        return token

    def see_prompt(self, past, logits):
        """Keeps the log-probabilities of the prompt's tokens after position past: float32 [n, n_vocab] of it and on."""
        request = self._request
        for token, row in zip(request.prompt[past + 1 : past + 1 + len(logits)], logits, strict=False):
            chosen, top = log_probabilities(row, int(token), request.prompt_logprobs)
            request.prompt_token_logprobs.append(chosen)
            request.prompt_top_logprobs.append(top)

    def _process(self, logits):
        request = self._request
        new = len(request.prompt) + len(request.tokens) - self._known
        if new:
            self._history[0, self._known : self._known + new] = request.tokens[-new:]
            self._known += new
        scores = logits.copy()  # the logits are a buffer of the session's
        for processor in self._processors:
            scores = processor(self._history[:, : self._known], scores)
        return scores

    def _whole(self, scores, ids, n_vocab):
        """The scores of the whole vocabulary, [n_vocab]."""
        if ids is None:
            whole = scores[0].copy()
        else:
            whole = np.full(n_vocab, -np.inf, np.float32)
            whole[ids] = scores[0]
        return log_softmax(whole) if self._request.sampling.renormalize_logits else whole


def log_probabilities(logits, token, count):
    """The log-probability of a token, and those of the `count` most likely ones, best first.

    Args:
        logits: float32 [n_vocab].
        token: an id.
        count: how many.

    Returns:
        A float, and {token id: float}.
    """
    logs = log_softmax(logits)
    least = logs.size - min(count, logs.size)
    top = np.flatnonzero(logs >= np.partition(logs, least)[least]) if count else np.empty(0, int)
    top = top[np.argsort(-logs[top], kind="stable")][:count]  # of equals the first
    return float(logs[token]), {int(one): float(logs[one]) for one in top}
