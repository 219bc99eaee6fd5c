"""Beam search: which continuations of one prompt are followed, and which of them are the best in the end."""

from dataclasses import dataclass

import numpy as np

from neo_tf.errors import RequestError

from ..argument_table import check_fields, default, explained
from .options import SamplingOptions
from .processors import HammingDiversity, make_processors
from .warpers import largest, log_softmax, make_warpers

_NONE = np.float32(-np.inf)


@explained
@dataclass(frozen=True)
class BeamOptions:
    """What beam search follows and returns, with transformers' names, meanings and defaults.

    Raises:
        RequestError: a value that the table of arguments does not allow, or values that do not go together.
    """

    num_beams: int = default("num_beams")
    num_return_sequences: int = default("num_return_sequences")
    length_penalty: float = default("length_penalty")
    early_stopping: bool | str = default("early_stopping")
    num_beam_groups: int = default("num_beam_groups")
    diversity_penalty: float = default("diversity_penalty")

    def __post_init__(self) -> None:
        check_fields(self)
        if self.num_return_sequences > self.num_beams:
            raise RequestError(
                f"num_return_sequences {self.num_return_sequences} exceeds num_beams {self.num_beams}: "
                "each sequence is one of the beams"
            )
        if self.num_beams % self.num_beam_groups:
            raise RequestError(f"num_beam_groups {self.num_beam_groups} must divide num_beams {self.num_beams}")
        if (self.num_beam_groups > 1) != (self.diversity_penalty > 0):
            raise RequestError(
                "num_beam_groups and diversity_penalty need each other: without a penalty all groups are the same"
            )

    def check_sampling(self, sampling: SamplingOptions) -> None:
        """Raises RequestError where these options do not go with those of sampling."""
        if self.num_beam_groups > 1 and sampling.do_sample:
            raise RequestError("num_beam_groups with do_sample=True: groups differ by their penalty, not by chance")


@dataclass
class Hypothesis:
    """A finished continuation.

    Args:
        tokens: new token ids.
        score: the sum of token_scores, divided by the length penalty: transformers' sequences_scores.
        finish_reason: "stop", "length", or what BeamSearch was told.
        token_scores: each token's log-probability after the processors.
        text: for who writes one.
    """

    tokens: list
    score: float
    finish_reason: str
    token_scores: list
    text: str = ""


class BeamSearch:
    """Follows the beams of one prompt.

    Call it with the next token's logits, float32 [1, n_vocab] of the prompt at first, [num_beams, n_vocab] then. It
    returns the beam that each new beam continues, and the token that it adds, both int [num_beams], best first; or
    None at the end. The first beams all continue beam 0. Where fewer than num_beams are possible, the others repeat
    the best one, and do not count.

    Args:
        options: a BeamOptions.
        sampling: a SamplingOptions: its processors see log-probabilities, as in transformers. With
            do_sample the continuations are drawn by their scores, all of a step's without repetition, and then ranked
            by them.
        prompt: token ids.
        max_new_tokens: length at which beams finish.
        stop_token_ids: ids that finish a beam; they are its last token.
        min_new_tokens: these do not come before so many.
        stops: a function that says of a list of new tokens whether a stop string ends with its last one.

    Attributes:
        hypotheses: at the end, a Hypothesis for each of num_return_sequences, best first; fewer where the processors
            leave no more.

    Raises:
        RequestError: groups are to be drawn.
    """

    def __init__(self, options, sampling, prompt, max_new_tokens, stop_token_ids=(), min_new_tokens=0, stops=None):
        options.check_sampling(sampling)
        self.hypotheses = []
        self._options, self._renormalizes = options, sampling.renormalize_logits
        self._diversity = HammingDiversity(options.diversity_penalty) if options.num_beam_groups > 1 else None
        limit = len(prompt) + max_new_tokens
        chain = sampling, len(prompt), limit, stop_token_ids, min_new_tokens, self._diversity
        self._processors = make_processors(*chain)
        # So many of a beam's tokens are looked at that one of them does not end the text.
        tokens_of_each = max(2, 1 + len(stop_token_ids))
        self._warpers = make_warpers(sampling, tokens_of_each)
        generator = np.random.default_rng(sampling.seed) if sampling.do_sample else None
        self._pad = stop_token_ids[0] if stop_token_ids else 0
        self._groups = [
            _Group(options, prompt, max_new_tokens, frozenset(stop_token_ids), stops, tokens_of_each, generator)
            for _ in range(options.num_beam_groups)
        ]

    def __call__(self, logits, end=None):
        """The beams that are continued, and their tokens; end is why all of them finish with these, such as "time"."""
        logs = log_softmax(logits)
        size = self._options.num_beams // len(self._groups)
        parents = np.arange(self._options.num_beams)
        tokens = np.full(self._options.num_beams, self._pad)
        for begin, group in zip(range(0, len(parents), size), self._groups, strict=True):
            if group.done:
                continue
            ours, first = slice(begin, begin + size), len(logits) == 1
            if self._diversity:
                self._diversity.taken = tokens[:begin]
            scores = self._process(group.history, logs.copy() if first else logs[ours])
            parents[ours], tokens[ours] = group.extend(scores, end)
            parents[ours] += 0 if first else begin
        if not all(group.done for group in self._groups):
            return parents, tokens
        finished = [one for group in self._groups for one in group.finished]
        self.hypotheses = sorted(finished, key=_best_first)[: self._options.num_return_sequences]
        return None

    def _process(self, history, scores):
        """Scores of the next token, from its log-probabilities."""
        for processor in self._processors:
            scores = processor(history, scores)
        if self._warpers or self._renormalizes:
            possible = scores.max(axis=-1) > _NONE  # a row of -inf has no distribution
            rows = scores[possible]
            for function, value in self._warpers:
                rows = function(rows, value)
            scores[possible] = log_softmax(rows) if self._renormalizes else rows
        return scores


class _Group:
    """Beams that compete with each other, and the hypotheses that have finished among them, best first.

    A single one is transformers 5's beam search. Several, diverse beams, are those of transformers 4.49, which 5 no
    longer has: they end a little differently.
    """

    def __init__(self, options, prompt, max_new_tokens, stop_token_ids, stops, tokens_of_each, generator):
        self.finished, self.done = [], False
        self._options, self._limit = options, max_new_tokens
        self._stop_token_ids, self._stops, self._generator = stop_token_ids, stops, generator
        self._diverse = options.num_beam_groups > 1
        self._size = options.num_beams // options.num_beam_groups
        self._count = tokens_of_each * self._size
        self._begin = self._length = len(prompt)
        self._tokens = np.empty((self._size, self._begin + max_new_tokens), np.int64)  # [beams, length] is in use
        self._tokens[:, : self._begin] = prompt
        self._token_scores = np.empty((self._size, max_new_tokens), np.float32)
        self._scores = np.full(self._size, _NONE)  # at first one beam, which is the prompt; -inf: none
        self._scores[0] = 0

    @property
    def history(self):
        """The tokens of each beam, int [beams, length]; at first there is one."""
        return self._tokens[: 1 if self._length == self._begin else None, : self._length]

    def extend(self, logs, end):
        """Adds a token to the beams by its scores, float32 [beams, n_vocab]; returns beams and tokens, int [beams]."""
        values, beams, tokens = self._candidates(logs + self._scores[: len(logs), None])
        if not values.size:
            return self._end()
        added, new = logs[beams, tokens], self._length + 1 - self._begin
        if new == self._limit:
            end = end or "length"
        chosen = list(zip(beams.tolist(), tokens.tolist(), values, added, strict=True))
        reasons = ["stop" if self._stopped(beam, token) else end for beam, token, *_ in chosen]
        # What ranks lower is there to go on with.
        ended = [(one, reason) for one, reason in zip(chosen[: self._size], reasons, strict=False) if reason]
        if self._diverse:
            ended.sort(key=lambda one: one[1] != "stop")
        for one, reason in ended:
            if not (self._diverse and reason != "stop" and self._full and self._options.early_stopping is True):
                self._finish(*one, reason)
        running = np.flatnonzero([reason != "stop" for reason in reasons])[: self._size]
        self.done = bool(end) or not running.size or self._is_done(values[0 if self._diverse else running[0]], new)
        if not running.size:
            return np.arange(self._size) % len(logs), np.zeros(self._size, np.int64)
        return self._follow(np.resize(running, self._size), running.size, values, beams, tokens, added)

    def _candidates(self, totals):
        """The best continuations that are possible, or some that are drawn: scores, beams and tokens, best first."""
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
        return flat[ids], *np.divmod(ids, totals.shape[1])

    def _stopped(self, beam, token):
        """Whether a beam ends the text with this token."""
        if token in self._stop_token_ids:
            return True
        return bool(self._stops) and self._stops([*self._tokens[beam, self._begin : self._length].tolist(), token])

    @property
    def _full(self):
        return len(self.finished) == self._size

    def _finish(self, beam, token, value, added, reason):
        """Keeps a beam with its last token, if it is one of the best."""
        new = self._length - self._begin
        tokens = [*self._tokens[beam, self._begin : self._length].tolist(), token]
        token_scores = [*self._token_scores[beam, :new].tolist(), float(added)]
        self._keep(Hypothesis(tokens, self._penalized(value, new + 1), reason, token_scores))

    def _keep(self, hypothesis):
        self.finished = sorted([*self.finished, hypothesis], key=_best_first)[: self._size]

    def _penalized(self, value, length):
        return float(np.float32(value) / length**self._options.length_penalty)

    def _is_done(self, best, new):
        """Whether nothing better is expected of the beams, the best of which has this score after so many tokens."""
        options = self._options
        if not self._full:
            return False
        if options.early_stopping is True:
            return True
        longest = options.early_stopping == "never" and options.length_penalty > 0
        return self._penalized(best, self._limit if longest else new) <= self.finished[-1].score

    def _follow(self, order, count, values, beams, tokens, added):
        """Goes on with candidates, of which so many count."""
        new = self._length - self._begin
        beams, tokens = beams[order], tokens[order]
        self._tokens[:, : self._length] = self._tokens[beams, : self._length]
        self._token_scores[:, :new] = self._token_scores[beams, :new]
        self._tokens[:, self._length], self._token_scores[:, new] = tokens, added[order]
        self._scores = values[order]
        self._scores[count:] = _NONE
        self._length += 1
        return beams, tokens

    def _end(self):
        """The processors leave no token: the beams end as they are."""
        new, self.done = self._length - self._begin, True
        for beam in np.flatnonzero(self._scores > _NONE):
            tokens, token_scores = self._tokens[beam, self._begin : self._length], self._token_scores[beam, :new]
            score = self._penalized(self._scores[beam], max(new, 1))
            self._keep(Hypothesis(tokens.tolist(), score, "stop", token_scores.tolist()))
        return np.arange(self._size) % len(self.history), np.zeros(self._size, np.int64)


def _best_first(hypothesis):
    return -hypothesis.score
