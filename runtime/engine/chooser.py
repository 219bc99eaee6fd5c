"""One request's choices: logits processors, sampler and log-probabilities around one row of logits."""

from typing import TYPE_CHECKING

import numpy as np

from neo_tf.errors import RequestError
from neo_tf.onnx_folder import top_tokens

from ..sampling.processors import MinLength, make_processors
from ..sampling.sampler import Sampler
from ..sampling.short_rows import ShortRule, short_log_probabilities, short_rule
from ..sampling.warpers import log_softmax, refuse_nan
from .generation import Generation

if TYPE_CHECKING:
    from neo_tf.config import GPTNeoConfig

    from .short_choice import ShortToken


class Chooser:
    """Chooses the tokens of one request, and keeps what the request asks for.

    Call it with float32 [1, n_vocab] for each next token: it returns an int, or None where the logits processors leave
    no token possible. Where `short_rule` says so, the token may be chosen by that rule instead, and `keep_short` told.

    Args:
        generation: What comes of the request.
        config: The model's.
    """

    def __init__(self, generation: Generation, config: "GPTNeoConfig") -> None:
        request = generation.request
        self._generation = generation
        self._request = request
        length, longest = len(request.prompt), request.longest(config)
        self._processors = make_processors(
            request.sampling, length, longest, request.stop_token_ids, request.min_new_tokens
        )
        self._sampler = Sampler(request.sampling)
        self._rule = self._make_rule(config)
        self._short_from = request.min_new_tokens if self._processors else 0  # stop tokens are possible from then on
        if self._processors:
            self._history = np.empty((1, longest), np.int64)  # [1, length so far] is in use
            self._history[0, :length] = request.prompt
            self._known = length

    def __call__(self, logits: np.ndarray) -> int | None:
        """The next token."""
        request, generation = self._request, self._generation
        greedy = not self._processors and self._sampler.generator is None
        if not greedy:
            refuse_nan(logits)
        scores = self._process(logits) if self._processors else logits
        if self._processors:
            highest = scores.max()
            if highest == -np.inf:
                return None
            if np.isnan(highest):  # infinity less infinity
                raise RequestError("penalties or biases are so large that their sum is no number")
            if highest == np.inf:  # beyond float32: as likely as a score can be
                np.minimum(scores, np.finfo(np.float32).max, out=scores)
        tokens, drawn_by, ids = self._sampler(scores)
        token = int(tokens[0])
        if greedy:  # the largest logit, or the first that is not a number
            refuse_nan(logits[:, token])
        if request.logprobs is not None:
            generation.add_logprob(*log_probabilities(logits[0], token, request.logprobs))
        if request.output_logits:
            generation.add_logits(logits[0].copy())
        if request.output_scores:
            generation.add_scores(self._whole(drawn_by, ids, logits.shape[1]))
        return token

    @property
    def short_rule(self) -> ShortRule | None:
        """How the next token is chosen from the most likely ones alone; None where the whole row is needed."""
        return self._rule if len(self._generation.tokens) >= self._short_from else None

    def keep_short(self, chosen: "ShortToken") -> None:
        """Keeps what the request asks for of a token that was chosen by `short_rule`."""
        count = self._request.logprobs
        if count is not None and chosen.ids is not None and chosen.logprobs is not None:
            found = short_log_probabilities(chosen.ids, chosen.logprobs, chosen.token, count)
            self._generation.add_logprob(*found)

    def _make_rule(self, config: "GPTNeoConfig") -> ShortRule | None:
        request = self._request
        whole = request.output_logits or request.output_scores
        if whole or not all(isinstance(one, MinLength) for one in self._processors):
            return None
        width = top_tokens(config)
        return short_rule(request.sampling, self._sampler.generator, request.logprobs, width, config.n_vocab)

    def see_prompt(self, past: int, logits: np.ndarray) -> None:
        """Keeps the log-probabilities of the prompt's tokens that follow some of its positions.

        Args:
            past: The first of the positions.
            logits: float32 [n, n_vocab] after this position and the n - 1 next ones.
        """
        request = self._request
        following = request.prompt[past + 1 : past + 1 + len(logits)]
        for token, row in zip(following, logits, strict=False):  # nothing follows the last position
            self._generation.add_prompt_logprob(*log_probabilities(row, int(token), request.prompt_logprobs or 0))

    def _process(self, logits: np.ndarray) -> np.ndarray:
        tokens = self._generation.tokens
        new = len(self._request.prompt) + len(tokens) - self._known
        if new:
            self._history[0, self._known : self._known + new] = tokens[-new:]
            self._known += new
        scores = logits.copy()  # the logits are a buffer of the session's
        for processor in self._processors:
            scores = processor(self._history[:, : self._known], scores)
        return scores

    def _whole(self, scores: np.ndarray, ids: np.ndarray | None, n_vocab: int) -> np.ndarray:
        """The scores of the whole vocabulary, [n_vocab]."""
        if ids is None:
            whole = scores[0].copy()
        else:
            whole = np.full(n_vocab, -np.inf, np.float32)
            whole[ids] = scores[0]
        return log_softmax(whole) if self._request.sampling.renormalize_logits else whole


def log_probabilities(logits: np.ndarray, token: int, count: int) -> tuple[float, dict[int, float]]:
    """The log-probability of a token, and those of the `count` most likely tokens, best first.

    Args:
        logits: float32 [n_vocab].
        token: A token id.
        count: The number of most likely tokens.

    Returns:
        A float, and {token id: float}.
    """
    logs = log_softmax(logits)
    ids = np.empty(0, np.int64)
    if count:
        least = logs.size - min(count, logs.size)
        ids = np.flatnonzero(logs >= np.partition(logs, least)[least])
        ids = ids[np.argsort(-logs[ids], kind="stable")][:count]  # of equal ones the first
    return float(logs[token]), {int(one): float(logs[one]) for one in ids}
