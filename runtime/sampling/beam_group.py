"""Beams that compete with each other: which of them go on with which tokens, and which have finished."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .warpers import largest

if TYPE_CHECKING:
    from .options import BeamOptions

_NONE = np.float32(-np.inf)


@dataclass
class Hypothesis:
    """A finished continuation of a prompt.

    Args:
        tokens: The new token ids.
        score: The sum of token_scores, divided by the length penalty; transformers' sequences_scores.
        finish_reason: "stop", "length", or the reason that BeamSearch was given.
        token_scores: The log-probability of each token, as the processors left it.
        text: The text of the tokens, which the caller may fill in.
    """

    tokens: list[int]
    score: float
    finish_reason: str
    token_scores: list[float]
    text: str = ""


class _Candidates(NamedTuple):
    """Beams with one token more, best first.

    Args:
        scores: float32 [n], the sums of the log-probabilities of all new tokens.
        beams: int [n], the beam that each goes on from.
        tokens: int [n], the token that each adds.
        token_scores: float32 [n], the log-probability of that token.
    """

    scores: np.ndarray
    beams: np.ndarray
    tokens: np.ndarray
    token_scores: np.ndarray


class BeamGroup:
    """Beams that compete with each other, as in transformers 5's beam search.

    In each step the best candidates are found among all beams with any next token. Those among the first `size` that
    end the text become hypotheses; the best `size` that do not end it are the new beams.

    Args:
        options: What beam search follows and returns. The group has num_beams / num_beam_groups beams.
        prompt: The prompt's token ids.
        max_new_tokens: The number of new tokens at which beams finish.
        stop_token_ids: The ids that finish a beam.
        stops: A function that is given a beam's new tokens and says whether a stop string ends with the last one; None
            where there are no stop strings.
        tokens_of_each: The number of candidates in a step, for each beam. It must exceed the number of stop tokens.
        generator: Draws the candidates; None takes the best ones.

    Attributes:
        finished: The best hypotheses so far, at most one for each beam, best first.
        done: Whether the group has ended.
    """

    def __init__(
        self,
        options: BeamOptions,
        prompt: Sequence[int],
        max_new_tokens: int,
        stop_token_ids: frozenset[int],
        stops: Callable[[list[int]], bool] | None,
        tokens_of_each: int,
        generator: np.random.Generator | None,
    ) -> None:
        self.finished: list[Hypothesis] = []
        self.done = False
        self._options = options
        self._limit = max_new_tokens
        self._stop_token_ids = stop_token_ids
        self._stops = stops
        self._generator = generator
        self._size = options.num_beams // options.num_beam_groups
        self._count = tokens_of_each * self._size
        self._begin = len(prompt)  # the position of the first new token
        self._length = len(prompt)
        self._tokens = np.empty((self._size, self._begin + max_new_tokens), np.int64)  # [beams, length] is in use
        self._tokens[:, : self._begin] = prompt
        self._token_scores = np.empty((self._size, max_new_tokens), np.float32)
        # The sum of each beam's token scores. -inf is no beam: at first there is one, which is the prompt.
        self._scores = np.full(self._size, _NONE)
        self._scores[0] = 0

    @property
    def history(self) -> np.ndarray:
        """The tokens of each beam, the prompt's included, int [beams, length]; at first there is one beam."""
        beams = 1 if self._length == self._begin else self._size
        return self._tokens[:beams, : self._length]

    def extend(self, logs: np.ndarray, end: str | None) -> tuple[np.ndarray, np.ndarray]:
        """Adds a token to the beams.

        Args:
            logs: float32 [beams, n_vocab], the log-probabilities of each beam's next token; -inf forbids a token.
            end: Why all beams finish with this token, or None.

        Returns:
            The beam that each new beam goes on from, and the token that it adds, both int [beams].
        """
        candidates = self._candidates(logs)
        if not candidates.tokens.size:
            return self._end_without_candidates()
        new = self._length + 1 - self._begin
        if new == self._limit:
            end = end or "length"
        pairs = zip(candidates.beams.tolist(), candidates.tokens.tolist(), strict=True)
        reasons = ["stop" if self._stopped(beam, token) else end for beam, token in pairs]
        # Candidates after the first `size` do not finish: they are there for beams to go on with.
        ended = [(place, reason) for place, reason in enumerate(reasons[: self._size]) if reason]
        self._finish(candidates, ended)
        running = np.flatnonzero([reason != "stop" for reason in reasons])[: self._size]
        if not running.size:
            self.done = True
            return np.arange(self._size) % len(logs), np.zeros(self._size, np.int64)
        self.done = bool(end) or self._is_done(self._best_to_come(candidates, running), new)
        return self._follow(candidates, running)

    def _candidates(self, logs: np.ndarray) -> _Candidates:
        """The best candidates that are possible, or some that are drawn."""
        totals = logs + self._scores[: len(logs), None]
        flat = totals.reshape(-1)
        if self._generator is None:
            ids = largest(flat, self._count)
            ids = ids[flat[ids] > _NONE]
        else:
            ids = np.flatnonzero(flat > _NONE)
            # Gumbel's trick: the largest key is a draw by the scores' softmax, each next one a draw of what is left.
            keys = flat[ids] - np.log(self._generator.standard_exponential(ids.size))
            best = largest(keys, self._count)
            ids = ids[best[np.argsort(-keys[best])[: self._count]]]
        ids = ids[np.argsort(-flat[ids], kind="stable")[: self._count]]
        beams, tokens = np.divmod(ids, totals.shape[1])
        return _Candidates(flat[ids], beams, tokens, logs[beams, tokens])

    def _stopped(self, beam: int, token: int) -> bool:
        """Whether a beam ends the text with this token."""
        if token in self._stop_token_ids:
            return True
        return self._stops is not None and self._stops([*self._new_tokens(beam), token])

    def _new_tokens(self, beam: int) -> list[int]:
        return self._tokens[beam, self._begin : self._length].tolist()

    def _finish(self, candidates: _Candidates, ended: list[tuple[int, str]]) -> None:
        """Makes hypotheses of candidates that have ended, each given by its place and the reason."""
        for place, reason in ended:
            self._finish_one(candidates, place, reason)

    def _best_to_come(self, candidates: _Candidates, running: np.ndarray) -> np.float32:
        """The score that future hypotheses are expected to reach: that of the best candidate that goes on."""
        return candidates.scores[running[0]]

    @property
    def _is_full(self) -> bool:
        return len(self.finished) == self._size

    def _finish_one(self, candidates: _Candidates, place: int, reason: str) -> None:
        """Keeps a candidate as a hypothesis, if it is one of the best."""
        beam = int(candidates.beams[place])
        new = self._length - self._begin
        tokens = [*self._new_tokens(beam), int(candidates.tokens[place])]
        token_scores = [*self._token_scores[beam, :new].tolist(), float(candidates.token_scores[place])]
        self._keep(Hypothesis(tokens, self._penalized(candidates.scores[place], new + 1), reason, token_scores))

    def _keep(self, hypothesis: Hypothesis) -> None:
        self.finished = sorted([*self.finished, hypothesis], key=best_first)[: self._size]

    def _penalized(self, score: np.float32, length: int) -> float:
        """A sum of log-probabilities, divided by the length penalty."""
        return float(np.float32(score) / length**self._options.length_penalty)

    def _is_done(self, best: np.float32, new: int) -> bool:
        """Whether no better hypotheses are expected.

        Args:
            best: The score of the best beam.
            new: The number of its new tokens.
        """
        if not self._is_full:
            return False
        early_stopping = self._options.early_stopping
        if early_stopping is True:
            return True
        # With "never", a beam may still reach the penalty of the longest text.
        reaches_limit = early_stopping == "never" and self._options.length_penalty > 0
        return self._penalized(best, self._limit if reaches_limit else new) <= self.finished[-1].score

    def _follow(self, candidates: _Candidates, running: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Goes on with the candidates at the places `running`. The first ones fill the beams that are left over."""
        new = self._length - self._begin
        order = np.resize(running, self._size)
        beams, tokens = candidates.beams[order], candidates.tokens[order]
        self._tokens[:, : self._length] = self._tokens[beams, : self._length]
        self._token_scores[:, :new] = self._token_scores[beams, :new]
        self._tokens[:, self._length] = tokens
        self._token_scores[:, new] = candidates.token_scores[order]
        self._scores = candidates.scores[order]
        self._scores[running.size :] = _NONE
        self._length += 1
        return beams, tokens

    def _end_without_candidates(self) -> tuple[np.ndarray, np.ndarray]:
        """Ends the group where the processors leave no token: the beams finish as they are."""
        new = self._length - self._begin
        self.done = True
        for beam in np.flatnonzero(self._scores > _NONE).tolist():
            score = self._penalized(self._scores[beam], max(new, 1))
            self._keep(Hypothesis(self._new_tokens(beam), score, "stop", self._token_scores[beam, :new].tolist()))
        return np.arange(self._size) % len(self.history), np.zeros(self._size, np.int64)


class DiverseBeamGroup(BeamGroup):
    """One of several groups, which are diverse beams as in transformers 4.49; transformers 5 no longer has them.

    They end a little differently from a BeamGroup.
    """

    def _finish(self, candidates: _Candidates, ended: list[tuple[int, str]]) -> None:
        """Finishes those that stop, and then the others; with early_stopping these do not replace any hypothesis."""
        for place, reason in ended:
            if reason == "stop":
                self._finish_one(candidates, place, reason)
        for place, reason in ended:
            if reason != "stop" and not (self._is_full and self._options.early_stopping is True):
                self._finish_one(candidates, place, reason)

    def _best_to_come(self, candidates: _Candidates, running: np.ndarray) -> np.float32:
        """The score of the best candidate, even if it has ended the text."""
        return candidates.scores[0]


def best_first(hypothesis: Hypothesis) -> float:
    """The key that sorts hypotheses, best first."""
    return -hypothesis.score
