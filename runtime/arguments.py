"""The arguments of one call: names and values are checked, and become the Requests of each prompt."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from neo_tf.errors import RequestError

from .argument_kinds import TokenIds
from .argument_table import (
    ARGUMENTS,
    DEFAULT_NEW_TOKENS,
    LEFT_OUT,
    NO_EFFECT,
    OLD_NAMES,
    Argument,
    check_fields,
    default,
    explained,
    is_refused,
)
from .engine.request import Request
from .generation_config import ModelSettings
from .sampling.options import BeamOptions, SamplingOptions

if TYPE_CHECKING:
    from neo_tf.config import GPTNeoConfig

    from .tokenizer import TokenizerLike


# A key of a result that a Hypothesis has by another name.
_OF_HYPOTHESIS = {"sequence_score": "score"}


@dataclass(frozen=True)
class Origin:
    """What follows from where arguments came from, as it is in transformers.

    Args:
        cut_to: The number of tokens that the call's max_length cuts a text to, max_new_tokens or not.
        new_tokens: The number of new tokens where no limit is given.
        counts_prefix: Whether max_length counts the prefix: it does where the call gives None for max_new_tokens.
        least_may_exceed: Whether a least length above the limit gives way to it: it is the model's, not the call's.
    """

    cut_to: int | None = None
    new_tokens: int = DEFAULT_NEW_TOKENS
    counts_prefix: bool = False
    least_may_exceed: bool = False


@explained
@dataclass(frozen=True)
class GenerateArguments:
    """The arguments of one call, checked as far as that needs neither a prompt nor a model. Make it with parse.

    `sampling` and `beams` hold the arguments of SamplingOptions and of BeamOptions; `beams` is None where num_beams
    is 1.
    """

    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    beams: BeamOptions | None = None
    # Length and end
    max_new_tokens: int | None = default("max_new_tokens")
    max_length: int | None = default("max_length")
    min_new_tokens: int = default("min_new_tokens")
    min_length: int = default("min_length")
    max_time: float | None = default("max_time")
    stop_strings: Sequence[str] = default("stop_strings")
    include_stop_str_in_output: bool = default("include_stop_str_in_output")
    eos_token_id: int | Sequence[int] | None = default("eos_token_id")
    stop_token_ids: Sequence[int] = default("stop_token_ids")
    # The prompt
    bos_token_id: int | None = default("bos_token_id")
    truncation: bool | None = default("truncation")
    add_special_tokens: bool = default("add_special_tokens")
    continue_final_message: bool | None = default("continue_final_message")
    tools: Sequence[Mapping[str, Any]] | None = default("tools")
    documents: Sequence[Mapping[str, Any]] | None = default("documents")
    tokenizer_encode_kwargs: Mapping[str, Any] | None = default("tokenizer_encode_kwargs")
    prefix: str | None = default("prefix")
    handle_long_generation: str | None = default("handle_long_generation")
    pad_token_id: int | None = default("pad_token_id")
    # Results
    num_return_sequences: int = default("num_return_sequences")  # with beams BeamOptions has it too
    return_full_text: bool = default("return_full_text")
    return_tensors: bool = default("return_tensors")
    skip_special_tokens: bool = default("skip_special_tokens")
    clean_up_tokenization_spaces: bool | None = default("clean_up_tokenization_spaces")
    logprobs: int | None = default("logprobs")
    prompt_logprobs: int | None = default("prompt_logprobs")
    output_scores: bool = default("output_scores")
    output_logits: bool = default("output_logits")
    streamer: Any = default("streamer")
    # Speed
    prompt_lookup_num_tokens: int | None = default("prompt_lookup_num_tokens")
    max_matching_ngram_size: int = default("max_matching_ngram_size")
    origin: Origin = field(default_factory=Origin)

    def __post_init__(self) -> None:
        check_fields(self)

    @classmethod
    def parse(
        cls,
        given: Mapping[str, Any],
        *under: Mapping[str, Any],
        settings: ModelSettings | None = None,
        lenient: bool = False,
    ) -> GenerateArguments:
        """Checks names, values and what they make together, as far as that needs no prompt.

        Args:
            given: {name: value}. None stands for the default.
            under: arguments that hold where those before say nothing else, the nearest first: those of a whole job,
                say.
            settings: what came with a model. It holds where nobody says anything else; where it has no effect, such as
                a temperature without do_sample, it is left out.
            lenient: whether an argument that has no effect is left out with a warning, as transformers does it, and not
                refused.

        Raises:
            RequestError: what is wrong, in one line.
            ConfigError: a setting of the model's that is not served.
        """
        settings = settings or ModelSettings()
        settings.check()
        layers = [_with_new_names(layer) for layer in (given, *under)]
        asked = {name: value for name, value in _lay_over(layers).items() if value is not None}
        values = {**settings.arguments, **asked}
        _leave_out(values, asked, lenient)
        for name, value in values.items():
            values[name] = ARGUMENTS[name].kind.normal(value)
            try:
                ARGUMENTS[name].check(values[name])
            except RequestError as error:
                raise error if name in asked else RequestError(f"{settings.source}: {error}") from None
        _check_together(values)
        sampling = SamplingOptions(**{"top_k": ARGUMENTS["top_k"].default} | _taken(values, SamplingOptions))
        beams = BeamOptions(**_taken(values, BeamOptions)) if values.get("num_beams", 1) > 1 else None
        if beams:
            beams.check_sampling(sampling)
        return cls(
            sampling=sampling,
            beams=beams,
            origin=Origin(
                cut_to=asked.get("max_length") if lenient else None,
                least_may_exceed=asked.keys().isdisjoint(("min_length", "min_new_tokens")),
            ),
            **_taken(values, cls),
        )

    @staticmethod
    def check(given: Mapping[str, Any]) -> None:
        """Raises RequestError for a name or a value that no model and no other argument can make right."""
        for name, value in _with_new_names(given).items():
            if value is not None:
                ARGUMENTS[name].check(ARGUMENTS[name].kind.normal(value))

    @property
    def needs_text(self) -> bool:
        """Whether a tokenizer must write text, even where only token ids are returned."""
        return bool(self.streamer or self.stop_strings or self.sampling.guide)

    @property
    def kept(self) -> dict[str, str]:
        """What a result holds beside the text: {its key: attribute of what came of a request, or of a Hypothesis}."""
        asked = [row for name, row in ARGUMENTS.items() if hasattr(self, name) and row.is_given(getattr(self, name))]
        if self.beams:
            return {key: _OF_HYPOTHESIS.get(key, key) for row in asked for key in row.beam_results}
        return {key: key for row in asked for key in row.results}

    @property
    def requests_of_each(self) -> int:
        """The number of Requests that a prompt makes: one for each sequence, or one for a whole beam search."""
        return 1 if self.beams else self.num_return_sequences

    @property
    def may_cut_prompt(self) -> bool:
        """Whether a prompt that is too long may be made shorter, in place of being refused."""
        cuts = (self.truncation, self.handle_long_generation, self.tokenizer_encode_kwargs, self.origin.cut_to)
        return any(cuts)

    @property
    def slots_of_each(self) -> int:
        """The number of slots that a prompt takes, where all of its sequences are decoded at the same time."""
        return self.beams.num_beams if self.beams else self.num_return_sequences

    def with_seed(self, seed: int) -> GenerateArguments:
        """The same arguments with a seed, where they have none."""
        if self.sampling.seed is not None:
            return self
        return replace(self, sampling=replace(self.sampling, seed=seed))

    def cut(self, model_max_length: int) -> int | None:
        """The number of tokens that a text is cut to, as transformers' pipeline cuts it; None leaves it whole.

        Args:
            model_max_length: the tokenizer's own limit.
        """
        if self.truncation is None:
            return self.origin.cut_to
        if not self.truncation:
            return None
        return self.origin.cut_to or self.max_length or model_max_length

    def encoding(self, model_max_length: int) -> dict[str, Any]:
        """The arguments that a text is encoded with, in the names of a tokenizer's call.

        Padding changes no text, and is left out.

        Args:
            model_max_length: the tokenizer's own limit.
        """
        cut = self.cut(model_max_length)
        found: dict[str, Any] = {"add_special_tokens": self.add_special_tokens}
        if self.truncation is False:
            found["truncation"] = False
        if cut is not None:
            found |= {"truncation": True, "max_length": cut}
        more = {name: value for name, value in (self.tokenizer_encode_kwargs or {}).items() if value is not None}
        found |= more
        if more.pop("padding", False) and more.keys().isdisjoint(("truncation",)) and cut is None:
            found.pop("max_length", None)  # of padding: it cuts nothing
        found.pop("padding", None)
        return found

    def chat_encoding(self, model_max_length: int) -> dict[str, Any]:
        """The arguments that a chat is encoded with, in the names of apply_chat_template.

        Args:
            model_max_length: the tokenizer's own limit.
        """
        found: dict[str, Any] = {"tools": self.tools, "documents": self.documents}
        if self.truncation:
            found |= {"truncation": True, "max_length": self.cut(model_max_length)}
        elif self.origin.cut_to is not None:
            found["max_length"] = self.origin.cut_to
        return found | {
            name: value for name, value in (self.tokenizer_encode_kwargs or {}).items() if name != "padding"
        }

    def fit(self, prompt: list[int], n_ctx: int) -> list[int]:
        """A prompt's token ids, without its beginning where handle_long_generation says so.

        Args:
            prompt: token ids.
            n_ctx: the number of tokens that prompt and new text may have together.

        Raises:
            RequestError: the new tokens alone would fill it.
        """
        new = self.max_new_tokens or max((self.max_length or 0) - len(prompt), 1)
        if self.handle_long_generation is None or len(prompt) + new <= n_ctx:
            return prompt
        if new >= n_ctx:
            raise RequestError(
                f"handle_long_generation: {new} new tokens leave no room for a prompt in a context of {n_ctx}"
            )
        return prompt[len(prompt) + new - n_ctx :]

    def request(
        self,
        prompt: list[int],
        number: int,
        config: GPTNeoConfig,
        tokenizer: TokenizerLike | None = None,
        prefix: int = 0,
    ) -> Request:
        """The Request for one of a prompt's sequences.

        Args:
            prompt: token ids.
            number: the sequence's, from 0. It is added to the seed.
            config: the model's.
            tokenizer: the model's; without one no text is written.
            prefix: the number of the prompt's tokens that max_length and min_length do not count.

        Raises:
            RequestError: lengths that the prompt leaves no room for, or a penalty of ends where there are none.
        """
        limit = self._limit(len(prompt), config.n_ctx, 0 if self.origin.counts_prefix else prefix)
        least = max(self.min_new_tokens, self.min_length + (prefix if self.min_length else 0) - len(prompt))
        if least > limit and self.origin.least_may_exceed:
            least = limit
        if least > limit:
            raise RequestError(f"at least {least} new tokens are asked for, but at most {limit} allowed")
        ends = self._ends(config)
        if self.sampling.exponential_decay_length_penalty and not ends:
            raise RequestError("exponential_decay_length_penalty needs an eos_token_id: the model has none")
        return Request(
            prompt,
            max_new_tokens=limit,
            min_new_tokens=least,
            stop_token_ids=ends,
            sampling=self._sampling(number),
            max_time=self.max_time,
            tokenizer=tokenizer,
            skip_special_tokens=self.skip_special_tokens,
            clean_up_tokenization_spaces=self.clean_up_tokenization_spaces,
            stop_strings=self.stop_strings,
            include_stop_str_in_output=self.include_stop_str_in_output,
            logprobs=self.logprobs,
            prompt_logprobs=self.prompt_logprobs,
            output_logits=self.output_logits,
            output_scores=self.output_scores and not self.beams,  # beams keep their scores in any case
            prompt_lookup_num_tokens=self.prompt_lookup_num_tokens,
            max_matching_ngram_size=self.max_matching_ngram_size,
            beams=self.beams,
        )

    def _limit(self, used: int, n_ctx: int, prefix: int = 0) -> int:
        """The number of new tokens that are allowed after a prompt of `used` tokens, `prefix` of them uncounted."""
        if self.max_new_tokens is not None:
            return self.max_new_tokens
        if self.max_length is None:
            return max(1, min(self.origin.new_tokens, n_ctx - used))
        if self.max_length + prefix <= used:
            raise RequestError(f"max_length {self.max_length} leaves no room after a prompt of {used} tokens")
        return self.max_length + prefix - used

    def _ends(self, config: GPTNeoConfig) -> tuple[int, ...]:
        """The token ids that end the text."""
        ends = config.eos_token_id if self.eos_token_id is None else self.eos_token_id
        kind = TokenIds(or_one=True)
        return (*([] if ends is None else kind.token_ids(ends)), *kind.token_ids(self.stop_token_ids))

    def _sampling(self, number: int) -> SamplingOptions:
        """The options of a prompt's sequence of that number."""
        if self.sampling.seed is None or number == 0:
            return self.sampling
        return replace(self.sampling, seed=self.sampling.seed + number)


def _with_new_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same arguments by the table's names.

    Raises:
        RequestError: a name that is unknown, or an argument that is given by both of its names.
    """
    found: dict[str, Any] = {}
    for name, value in values.items():
        if is_refused(name, value):
            raise RequestError(f"{name} is not served: {LEFT_OUT[name]}")
        if name in NO_EFFECT or name in LEFT_OUT:
            continue
        if name in OLD_NAMES:
            found |= _by_new_name(name, value, values)
        elif name in ARGUMENTS:
            found[name] = value
        else:
            near = difflib.get_close_matches(name, [*ARGUMENTS, *OLD_NAMES], 1)
            hint = f"; did you mean {near[0]!r}?" if near else f" (known: {', '.join(ARGUMENTS)})"
            raise RequestError(f"unknown argument {name!r}{hint}")
    return found


def _by_new_name(old: str, value: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """{new name: value} of an argument that is given by its old name."""
    name, is_opposite = OLD_NAMES[old]
    if value is None:
        return {} if name in values else {name: None}
    if values.get(name) is not None:
        raise RequestError(f"{old} is an old name of {name}: give one of them")
    value = ARGUMENTS[name].kind.normal(value)
    ARGUMENTS[name].kind.check(old, value)
    return {name: not value if is_opposite else value}


def _lay_over(layers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One set of arguments of several, the nearest first. A limit also replaces one of the other kind below it."""
    merged: dict[str, Any] = {}
    for layer in reversed(layers):
        replaced = [ARGUMENTS[name].replaces for name in layer]
        kept = {name: value for name, value in merged.items() if name not in replaced}
        merged = kept | layer
    return merged


def _leave_out(values: dict[str, Any], asked: Mapping[str, Any], lenient: bool) -> None:
    """Leaves out what has no effect: of a model's settings silently, of a call's arguments with a warning.

    What is wrong in a call that is not lenient stays, to be refused.
    """
    for name in ("do_sample", "num_beams"):
        if name in values:
            values[name] = ARGUMENTS[name].kind.normal(values[name])
            ARGUMENTS[name].check(values[name])
    for row in [ARGUMENTS[name] for name in values]:
        is_idle = row.needs is not None and not any(
            name in values and ARGUMENTS[name].is_given(values[name]) for name in row.needs.any_of
        )
        if row.name == "num_return_sequences":  # transformers refuses it, too
            continue
        if row.name not in asked:
            if is_idle or (not row.with_beams and values.get("num_beams", 1) > 1):
                del values[row.name]
        elif is_idle and lenient:
            _leave_out_of_call(row, values)
    for wins, loses in (("max_new_tokens", "max_length"), ("min_new_tokens", "min_length")):
        if wins not in values or loses not in values:
            continue
        if lenient or loses not in asked:
            if loses in asked:
                warnings.warn(f"{wins} and {loses} are both set: {wins} decides", stacklevel=6)
            del values[loses]
        elif wins not in asked:
            del values[wins]


def _leave_out_of_call(row: Argument, values: dict[str, Any]) -> None:
    """Leaves out an argument of a call, with a warning unless its value is the default.

    A value that is wrong is refused all the same; but 0 is how scripts switch a temperature off.
    """
    value = values.pop(row.name)
    if value != 0:
        row.check(row.kind.normal(value))
    if row.needs and row.is_given(value):
        warnings.warn(f"{row.name} has no effect: it needs {row.needs.words}, {row.needs.reason}", stacklevel=7)


def _taken(values: Mapping[str, Any], options: type) -> dict[str, Any]:
    """Those values that a dataclass has fields for."""
    names = {one.name for one in fields(options)}
    return {name: value for name, value in values.items() if name in names}


def _check_together(values: Mapping[str, Any]) -> None:
    """Raises RequestError where arguments do not go together. `values` are those that were given."""
    given = [row for row in ARGUMENTS.values() if row.name in values and row.is_given(values[row.name])]
    names = {row.name for row in given}
    for row in given:
        if row.replaces in names:
            raise RequestError(f"{row.name} and {row.replaces} are both given: one limit is enough")
        if row.needs and names.isdisjoint(row.needs.any_of):
            raise RequestError(f"{row.name} needs {row.needs.words}: {row.needs.reason}")
        if not row.with_beams and "num_beams" in names:
            raise RequestError(
                f"{row.name} with num_beams {values['num_beams']}: the beam that returns is known only at the end"
            )
