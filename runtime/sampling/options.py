"""How the next token is chosen: the options of sampling, of the processors before it, and of beam search."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from neo_tf.errors import RequestError

from ..argument_kinds import SequenceBiases
from ..argument_table import check_fields, default, explained, rows_of
from ..guided.guide import Guide

_GUIDED = ("guided_regex", "guided_choice", "guided_json")


@explained
@dataclass(frozen=True)
class SamplingOptions:
    """How the next token is chosen, with transformers' names, meanings and defaults, and OpenAI's penalties.

    Raises:
        RequestError: a value that the table of arguments does not allow.
    """

    do_sample: bool = default("do_sample")
    temperature: float = default("temperature")
    top_k: int = 0  # unlike in a call of the pipeline, where 50 tokens are kept: an engine does what it is told alone
    top_p: float = default("top_p")
    seed: int | None = default("seed")
    min_p: float = default("min_p")
    typical_p: float = default("typical_p")
    epsilon_cutoff: float = default("epsilon_cutoff")
    eta_cutoff: float = default("eta_cutoff")
    repetition_penalty: float = default("repetition_penalty")
    presence_penalty: float = default("presence_penalty")
    frequency_penalty: float = default("frequency_penalty")
    no_repeat_ngram_size: int = default("no_repeat_ngram_size")
    bad_words_ids: Sequence[Sequence[int]] = default("bad_words_ids")
    sequence_bias: dict[tuple[int, ...], float] | Sequence[Any] = default("sequence_bias")
    logit_bias: dict[int, float] | dict[str, float] = default("logit_bias")
    suppress_tokens: Sequence[int] = default("suppress_tokens")
    begin_suppress_tokens: Sequence[int] = default("begin_suppress_tokens")
    forced_bos_token_id: int | None = default("forced_bos_token_id")
    forced_eos_token_id: int | list[int] | tuple[int, ...] | None = default("forced_eos_token_id")
    exponential_decay_length_penalty: tuple[int, float] | None = default("exponential_decay_length_penalty")
    guided_regex: str | None = default("guided_regex")
    guided_choice: Sequence[str] | None = default("guided_choice")
    guided_json: dict[str, Any] | None = default("guided_json")
    renormalize_logits: bool = default("renormalize_logits")
    logits_processor: Sequence[Callable[..., Any]] = default("logits_processor")

    def __post_init__(self) -> None:
        check_fields(self)
        given = [name for name in _GUIDED if getattr(self, name) is not None]
        if len(given) > 1:
            raise RequestError(f"{given[0]} and {given[1]} are both given: a text keeps to one of them")

    @functools.cached_property
    def guide(self) -> Guide | None:
        """What the text must keep to; None where it is free.

        Raises:
            RequestError: It has something that is not served.
        """
        if self.guided_regex is not None:
            return Guide.of_regex(self.guided_regex)
        if self.guided_choice is not None:
            return Guide.of_choices(self.guided_choice)
        if self.guided_json is not None:
            return Guide.of_schema(self.guided_json)
        return None

    def biases(self) -> dict[tuple[int, ...], float]:
        """sequence_bias and logit_bias together: {(token id, ...): bias}."""
        found = {tuple(ids): bias for ids, bias in SequenceBiases.pairs(self.sequence_bias)}
        for token, bias in self.logit_bias.items():
            found[int(token),] = found.get((int(token),), 0) + bias
        return found

    def check_vocabulary(self, n_vocab: int) -> None:
        """Raises RequestError where an option mentions a token id outside the vocabulary."""
        for row, value in rows_of(self):
            for token in [] if value is None else row.kind.token_ids(value):
                if not 0 <= token < n_vocab:
                    raise RequestError(f"{row.name}: token id {token} is outside the vocabulary of {n_vocab}")


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
        if sampling.guide:
            raise RequestError(
                f"{sampling.guide.name} with num_beams {self.num_beams}: a grammar follows one text, not several beams"
            )
        if self.num_beam_groups > 1 and sampling.do_sample:
            raise RequestError("num_beam_groups with do_sample=True: groups differ by their penalty, not by chance")
