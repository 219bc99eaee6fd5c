"""Beam search: which continuations of one prompt are followed, and which of them are the best in the end."""

from collections.abc import Callable, Sequence

import numpy as np

from .beam_group import BeamGroup, DiverseBeamGroup, Hypothesis, best_first
from .options import BeamOptions, SamplingOptions
from .processors import HammingDiversity, make_processors
from .warpers import log_softmax, make_warpers, refuse_nan


class BeamSearch:
    """Follows the beams of one prompt.

    Call it with the logits of the next token, until it returns None.

    Args:
        options: What beam search follows and returns.
        sampling: How the next token is chosen. The processors see log-probabilities, as in transformers. With do_sample
            the continuations of a step are drawn by their scores, without repetition, and then ranked by them.
        prompt: The prompt's token ids.
        max_new_tokens: The number of new tokens at which beams finish.
        stop_token_ids: The ids that finish a beam, and are its last token.
        min_new_tokens: The number of new tokens before which no stop token is chosen.
        stops: A function that is given a beam's new tokens and says whether a stop string ends with the last one; None
            where there are no stop strings.

    Attributes:
        hypotheses: At the end, the num_return_sequences best Hypotheses, best first; fewer where the processors leave
            no more.

    Raises:
        RequestError: The options do not go with those of sampling.
    """

    def __init__(
        self,
        options: BeamOptions,
        sampling: SamplingOptions,
        prompt: Sequence[int],
        max_new_tokens: int,
        stop_token_ids: Sequence[int] = (),
        min_new_tokens: int = 0,
        stops: Callable[[list[int]], bool] | None = None,
    ) -> None:
        options.check_sampling(sampling)
        self.hypotheses: list[Hypothesis] = []
        self._options = options
        self._renormalizes = sampling.renormalize_logits
        self._diversity = HammingDiversity(options.diversity_penalty) if options.num_beam_groups > 1 else None
        max_length = len(prompt) + max_new_tokens
        self._processors = make_processors(
            sampling, len(prompt), max_length, stop_token_ids, min_new_tokens, self._diversity
        )
        # With this many candidates for each beam, at least one of a beam's does not end the text.
        tokens_of_each = max(2, 1 + len(stop_token_ids))
        self._warpers = make_warpers(sampling, tokens_of_each)
        self._pad = stop_token_ids[0] if stop_token_ids else 0  # the token of a group that has ended
        generator = np.random.default_rng(sampling.seed) if sampling.do_sample else None
        kind = BeamGroup if options.num_beam_groups == 1 else DiverseBeamGroup
        self._groups = [
            kind(options, prompt, max_new_tokens, frozenset(stop_token_ids), stops, tokens_of_each, generator)
            for _ in range(options.num_beam_groups)
        ]

    def __call__(self, logits: np.ndarray, end: str | None = None) -> tuple[np.ndarray, np.ndarray] | None:
        """Goes one token further.

        Args:
            logits: float32 [1, n_vocab] after the prompt, [num_beams, n_vocab] from then on.
            end: Why all beams finish with this token, such as "time"; None lets them go on.

        Returns:
            The beam that each new beam goes on from, and the token that it adds, both int [num_beams], best first; or
            None at the end. The first beams all go on from beam 0. Where fewer than num_beams are possible, the others
            repeat the best one, and do not count.
        """
        refuse_nan(logits)
        logs = log_softmax(logits)
        is_first = len(logits) == 1
        size = self._options.num_beams // len(self._groups)
        parents = np.arange(self._options.num_beams)
        tokens = np.full(self._options.num_beams, self._pad)
        for begin, group in zip(range(0, len(parents), size), self._groups, strict=True):
            if group.done:
                continue
            if self._diversity:
                self._diversity.taken = tokens[:begin]
            own = slice(begin, begin + size)
            scores = self._process(group.history, logs.copy() if is_first else logs[own])
            beams, tokens[own] = group.extend(scores, end)
            parents[own] = beams if is_first else begin + beams
        if not all(group.done for group in self._groups):
            return parents, tokens
        finished = [hypothesis for group in self._groups for hypothesis in group.finished]
        self.hypotheses = sorted(finished, key=best_first)[: self._options.num_return_sequences]
        return None

    def _process(self, history: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """The scores that the next token is chosen by, from its log-probabilities, float32 [beams, n_vocab]."""
        for processor in self._processors:
            scores = processor(history, scores)
        if self._warpers or self._renormalizes:
            possible = scores.max(axis=-1) > -np.inf  # a row of -inf has no distribution
            rows = scores[possible]
            for function, value in self._warpers:
                rows = function(rows, value)
            scores[possible] = log_softmax(rows) if self._renormalizes else rows
        return scores
