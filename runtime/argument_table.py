"""The arguments of generation, each said once: dataclasses, pipeline, command line and docs read this table.

`python -m neo_tf.runtime.argument_table` prints the table of docs/generation.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any, TypeVar

from .argument_kinds import (
    Choice,
    Choices,
    Decay,
    Dicts,
    Flag,
    Functions,
    JsonSchema,
    Kind,
    NamedValues,
    Number,
    SequenceBiases,
    Streamer,
    Text,
    Texts,
    TokenBiases,
    TokenId,
    TokenIds,
    TokenSequences,
    WellFormedText,
    Whole,
)

_Options = TypeVar("_Options")

DEFAULT_NEW_TOKENS = 256  # like transformers' pipeline; fewer where the context ends


class Panel(StrEnum):
    """The groups that help and docs show arguments in."""

    LENGTH = "Length and end"
    SAMPLING = "Sampling"
    BEAMS = "Beams"
    PENALTIES = "Penalties"
    STRUCTURE = "Structured output"
    RESULTS = "Results"
    SPEED = "Speed"


@dataclass(frozen=True)
class Needs:
    """What an argument needs to have any effect.

    Args:
        words: what must be given.
        any_of: names of arguments; one of them must differ from its default.
        reason: what happens without them.
    """

    words: str
    any_of: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class Argument:
    """A row of the table.

    Args:
        name: transformers' name, where transformers has the argument.
        panel: the group that help and docs show it in.
        kind: which values are allowed.
        default: what holds where the argument is not given, in a call of the pipeline. None is allowed as a value
            where it is the default.
        meaning: what the argument does, with its unit; and what happens without it, where its default is None.
        meaning_of_false: what False does, for a flag that is True by default: the option --no-NAME says it.
        needs: what the argument needs to have any effect.
        with_beams: whether it can be given with num_beams above 1.
        in_json: whether a line of a job, or another JSON object, can give it.
        on_command_line: whether `neo-tf generate` has an option for it.
        replaces: the argument that cannot be given together with it, and that a nearer one replaces.
        results: the keys that it adds to a result.
        beam_results: the keys that it adds with num_beams above 1.
        streams: whether the text of one prompt can still be shown while it is written.
        has_opposite: whether the command line can switch it off, too, because a model may switch it on.
    """

    name: str
    panel: Panel
    kind: Kind
    default: Any
    meaning: str
    meaning_of_false: str = ""
    needs: Needs | None = None
    with_beams: bool = True
    in_json: bool = True
    on_command_line: bool = True
    replaces: str | None = None
    results: tuple[str, ...] = ()
    beam_results: tuple[str, ...] = ()
    streams: bool = True
    has_opposite: bool = False

    def check(self, value: Any) -> None:
        """Raises RequestError, with the argument's name, where a value is not allowed."""
        if value is not None or self.default is not None:
            self.kind.check(self.name, value)

    def is_given(self, value: Any) -> bool:
        """Whether a value differs from the default."""
        if self.default is None or isinstance(self.default, bool):
            return value is not self.default
        if isinstance(self.default, tuple | dict):
            return len(value) > 0
        return value != self.default


_DRAWING = Needs("do_sample=True", ("do_sample",), "without it the most likely token is taken")
_SEARCHING = Needs("num_beams above 1", ("num_beams",), "without beams one text is followed")
_GUESSING = Needs("prompt_lookup_num_tokens", ("prompt_lookup_num_tokens",), "without it nothing is guessed")
_DIFFERING = Needs("do_sample=True or num_beams", ("do_sample", "num_beams"), "without them all sequences are the same")
_GUIDED = "It needs the extra guided, and does not go with num_beams above 1."

# In the order of help and docs.
_ROWS = (
    Argument(
        "max_new_tokens",
        Panel.LENGTH,
        Whole(least=1),
        None,
        "Stop after this number of new tokens. Without this and max_length the limit is "
        f"{DEFAULT_NEW_TOKENS} new tokens, or fewer where the model's context ends.",
        replaces="max_length",
    ),
    Argument(
        "max_length",
        Panel.LENGTH,
        Whole(least=1),
        None,
        "Stop when the prompt and the new text together have this number of tokens. It takes the place of "
        "max_new_tokens.",
        replaces="max_new_tokens",
    ),
    Argument(
        "min_new_tokens",
        Panel.LENGTH,
        Whole(least=0),
        0,
        "Do not choose an end-of-text token before there is this number of new tokens.",
    ),
    Argument(
        "min_length",
        Panel.LENGTH,
        Whole(least=0),
        0,
        "Do not choose an end-of-text token before the prompt and the new text together have this number of tokens.",
    ),
    Argument(
        "max_time",
        Panel.LENGTH,
        Number(above=0),
        None,
        "Stop after this number of seconds, which begin with the prefill of the prompt. Without it there is no limit "
        "of time.",
    ),
    Argument(
        "stop_strings",
        Panel.LENGTH,
        Texts(),
        (),
        "Stop as soon as the text contains this string, or one of several.",
    ),
    Argument(
        "include_stop_str_in_output",
        Panel.LENGTH,
        Flag(),
        True,
        "End the text with the token that completes the stop string.",
        "End the text before the stop string, not with the token that completes it.",
    ),
    Argument(
        "eos_token_id",
        Panel.LENGTH,
        TokenIds(or_one=True),
        None,
        "Stop after this token, or one of several. Without it the model's own end-of-text token ends the text.",
    ),
    Argument(
        "stop_token_ids",
        Panel.LENGTH,
        TokenIds(),
        (),
        "Stop after these tokens too, in addition to eos_token_id.",
    ),
    Argument(
        "bos_token_id",
        Panel.LENGTH,
        TokenId(),
        None,
        "Begin with this token where the prompt is empty. Without it the model's own beginning-of-text token is used.",
    ),
    Argument(
        "forced_bos_token_id",
        Panel.LENGTH,
        TokenId(),
        None,
        "Choose this token first, where the prompt is a single token. Without it no first token is forced.",
    ),
    Argument(
        "forced_eos_token_id",
        Panel.LENGTH,
        TokenIds(or_one=True),
        None,
        "Choose this token, or one of several, as the last one that the length limit allows. Without it no last token "
        "is forced.",
    ),
    Argument(
        "exponential_decay_length_penalty",
        Panel.LENGTH,
        Decay(),
        None,
        "Given as [start, factor]: after this number of new tokens, raise the scores of the end-of-text tokens by a "
        "power of the factor that grows with each token. Without it they are not raised.",
    ),
    Argument(
        "handle_long_generation",
        Panel.LENGTH,
        Choice(("hole",)),
        None,
        "With hole, leave out the beginning of a prompt that is too long for the model's context. Without it such a "
        "prompt is refused.",
    ),
    Argument(
        "truncation",
        Panel.LENGTH,
        Flag(),
        None,
        "Cut a prompt that is a text to max_length tokens, or to the tokenizer's own limit where there is no "
        "max_length. Without it a call's max_length cuts the prompt too, as in transformers.",
        on_command_line=False,
    ),
    Argument(
        "add_special_tokens",
        Panel.LENGTH,
        Flag(),
        True,
        "Put the tokenizer's own special tokens around the prompt, if it has any.",
        "Leave out the special tokens that the tokenizer puts around the prompt.",
        on_command_line=False,
    ),
    Argument(
        "do_sample",
        Panel.SAMPLING,
        Flag(),
        False,
        "Draw each token at random, by its probability. Otherwise the most likely token is taken.",
        has_opposite=True,
    ),
    Argument(
        "temperature",
        Panel.SAMPLING,
        Number(above=0, hint="for 0, leave out do_sample"),
        1.0,
        "Divide the logits by this number: below 1 the text becomes more predictable, above 1 more varied.",
        needs=_DRAWING,
    ),
    Argument(
        "top_k",
        Panel.SAMPLING,
        Whole(least=0),
        50,  # like transformers
        "Draw from this number of most likely tokens alone; 0 draws from all tokens.",
        needs=_DRAWING,
    ),
    Argument(
        "top_p",
        Panel.SAMPLING,
        Number(above=0, most=1),
        1.0,
        "Draw from the smallest set of most likely tokens whose probabilities add up to this number; 1 draws from all "
        "tokens.",
        needs=_DRAWING,
    ),
    Argument(
        "min_p",
        Panel.SAMPLING,
        Number(least=0, most=1),
        0.0,
        "Draw from the tokens that are at least this many times as likely as the most likely token: 0.1 means a tenth "
        "of its probability.",
        needs=_DRAWING,
    ),
    Argument(
        "typical_p",
        Panel.SAMPLING,
        Number(above=0, most=1),
        1.0,
        "Draw from the tokens whose information is nearest to the expected information, until their probabilities add "
        "up to this number; 1 draws from all tokens.",
        needs=_DRAWING,
    ),
    Argument(
        "epsilon_cutoff",
        Panel.SAMPLING,
        Number(least=0, below=1),
        0.0,
        "Draw from the tokens that have at least this probability.",
        needs=_DRAWING,
    ),
    Argument(
        "eta_cutoff",
        Panel.SAMPLING,
        Number(least=0, below=1),
        0.0,
        "Draw from the tokens that have at least this probability, or a lower one where many tokens are about equally "
        "likely.",
        needs=_DRAWING,
    ),
    Argument(
        "seed",
        Panel.SAMPLING,
        Whole(least=0),
        None,
        "Start the random generator with this number, so that the same text is drawn again. Without it each run draws "
        "another text.",
    ),
    Argument(
        "logits_processor",
        Panel.SAMPLING,
        Functions(),
        (),
        "Change the scores with these functions of (history, scores), after all other processors and before "
        "temperature and the rest of sampling.",
        in_json=False,
        on_command_line=False,
    ),
    Argument(
        "num_beams",
        Panel.BEAMS,
        Whole(least=1),
        1,
        "Follow this number of continuations together, and return the best one: beam search. 1 is no beam search.",
        streams=False,
    ),
    Argument(
        "length_penalty",
        Panel.BEAMS,
        Number(least=-10, most=10),  # a float32 holds 2048 ** 10
        1.0,
        "Divide a continuation's log-probability by its number of tokens to the power of this number: above 0 longer "
        "texts win, below 0 shorter ones.",
        needs=_SEARCHING,
    ),
    Argument(
        "early_stopping",
        Panel.BEAMS,
        Choice((True, False, "never")),
        False,
        "When to end the search: true ends it when num_beams continuations are finished, false when a better one is "
        "unlikely, and never when a better one is impossible.",
        needs=_SEARCHING,
    ),
    Argument(
        "num_beam_groups",
        Panel.BEAMS,
        Whole(least=1),
        1,
        "Divide the beams into this number of groups, which diversity_penalty makes different from each other.",
        needs=_SEARCHING,
    ),
    Argument(
        "diversity_penalty",
        Panel.BEAMS,
        Number(least=0, below=math.inf),
        0.0,
        "Subtract this number from a token's score for each beam of an earlier group that chooses the token in the "
        "same step.",
        needs=_SEARCHING,
    ),
    Argument(
        "repetition_penalty",
        Panel.PENALTIES,
        Number(above=0, below=math.inf),
        1.0,
        "Make tokens that the prompt or the new text contains less likely, by this factor; below 1 they become more "
        "likely.",
    ),
    Argument(
        "presence_penalty",
        Panel.PENALTIES,
        Number(above=-math.inf, below=math.inf),
        0.0,
        "Subtract this number from the logit of each token that the new text contains.",
    ),
    Argument(
        "frequency_penalty",
        Panel.PENALTIES,
        Number(above=-math.inf, below=math.inf),
        0.0,
        "Subtract this number from a token's logit for each time that the new text contains the token.",
    ),
    Argument(
        "no_repeat_ngram_size",
        Panel.PENALTIES,
        Whole(least=0),
        0,
        "Do not repeat any sequence of this number of tokens, the prompt's included; 0 allows all repetitions.",
    ),
    Argument(
        "suppress_tokens",
        Panel.PENALTIES,
        TokenIds(),
        (),
        "Never choose these tokens.",
    ),
    Argument(
        "begin_suppress_tokens",
        Panel.PENALTIES,
        TokenIds(),
        (),
        "Do not choose these tokens as the first new token.",
    ),
    Argument(
        "bad_words_ids",
        Panel.PENALTIES,
        TokenSequences(),
        (),
        "Never write these sequences of token ids, such as [[5], [7, 8]].",
    ),
    Argument(
        "logit_bias",
        Panel.PENALTIES,
        TokenBiases(),
        {},
        'Add numbers to the logits of tokens, given by token id, such as {"5": -2.5}.',
    ),
    Argument(
        "sequence_bias",
        Panel.PENALTIES,
        SequenceBiases(),
        {},
        "Add a number to the logit of the token that would complete a sequence of token ids, such as [[[7, 8], -2.5]].",
    ),
    Argument(
        "guided_regex",
        Panel.STRUCTURE,
        WellFormedText(),
        None,
        "Write a new text that matches this regular expression as a whole, in the syntax of Rust's crate regex. "
        f"Without it any text may come. {_GUIDED}",
    ),
    Argument(
        "guided_choice",
        Panel.STRUCTURE,
        Choices(),
        None,
        f"Write one of these texts. Without it any text may come. {_GUIDED}",
    ),
    Argument(
        "guided_json",
        Panel.STRUCTURE,
        JsonSchema(),
        None,
        f"Write JSON that keeps to this JSON schema. Without it any text may come. {_GUIDED}",
    ),
    Argument(
        "return_full_text",
        Panel.RESULTS,
        Flag(),
        True,
        "Return the prompt and the new text together.",
        "Return the new text alone, without the prompt.",
    ),
    Argument(
        "prefix",
        Panel.RESULTS,
        Text(),
        None,
        "Put this text before each prompt. It is not returned. Without it nothing is put before the prompt.",
    ),
    Argument(
        "num_return_sequences",
        Panel.RESULTS,
        Whole(least=1),
        1,
        "Return this number of continuations of each prompt.",
        needs=_DIFFERING,
        streams=False,
    ),
    Argument(
        "return_tensors",
        Panel.RESULTS,
        Flag(),
        False,
        "Return token ids instead of text.",
        streams=False,
    ),
    Argument(
        "skip_special_tokens",
        Panel.RESULTS,
        Flag(),
        True,
        "Leave special tokens out of the new text.",
        "Write special tokens, such as the end-of-text token, into the new text.",
        on_command_line=False,
        streams=False,
    ),
    Argument(
        "clean_up_tokenization_spaces",
        Panel.RESULTS,
        Flag(),
        None,
        "Remove the spaces before punctuation that decoding writes; byte-level BPE never writes any. Without it the "
        "tokenizer's own setting holds.",
        on_command_line=False,
        streams=False,
    ),
    Argument(
        "continue_final_message",
        Panel.RESULTS,
        Flag(),
        None,
        "With a chat as the prompt, continue its last message. Without it this is done where the last message is the "
        "assistant's.",
        in_json=False,
        on_command_line=False,
    ),
    Argument(
        "tools",
        Panel.RESULTS,
        Dicts(),
        None,
        "Give these tools, as JSON schemas, to the chat template. Without it the template sees none.",
        in_json=False,
        on_command_line=False,
    ),
    Argument(
        "documents",
        Panel.RESULTS,
        Dicts(),
        None,
        "Give these documents to the chat template. Without it the template sees none.",
        in_json=False,
        on_command_line=False,
    ),
    Argument(
        "tokenizer_encode_kwargs",
        Panel.RESULTS,
        NamedValues(),
        None,
        "Encode the prompt with these arguments of the tokenizer's call, or of the chat template where it is a chat. "
        "They come before truncation, max_length and add_special_tokens. Without it there are no others.",
        in_json=False,
        on_command_line=False,
    ),
    Argument(
        "logprobs",
        Panel.RESULTS,
        Whole(least=0),
        None,
        "Return the log-probability of each new token, and of this number of most likely tokens at its place, as the "
        "model gives them before any processor. Without it none is returned.",
        with_beams=False,
        results=("token_logprobs", "top_logprobs"),
        streams=False,
    ),
    Argument(
        "prompt_logprobs",
        Panel.RESULTS,
        Whole(least=0),
        None,
        "Return the same log-probabilities for the prompt's tokens after the first; the prefill is slower then. "
        "Without it none is returned.",
        with_beams=False,
        results=("prompt_token_logprobs", "prompt_top_logprobs"),
        streams=False,
    ),
    Argument(
        "output_scores",
        Panel.RESULTS,
        Flag(),
        False,
        "Return the scores that each new token was chosen by, float32 [new tokens, n_vocab]; with beams, the score of "
        "the sequence and of each of its tokens.",
        in_json=False,
        on_command_line=False,
        results=("scores",),
        beam_results=("sequence_score", "token_scores"),
    ),
    Argument(
        "output_logits",
        Panel.RESULTS,
        Flag(),
        False,
        "Return the logits of each new token, before any processor, float32 [new tokens, n_vocab].",
        with_beams=False,
        in_json=False,
        on_command_line=False,
        results=("logits",),
    ),
    Argument(
        "renormalize_logits",
        Panel.RESULTS,
        Flag(),
        False,
        "Turn processed scores into log-probabilities again, before beams are compared or scores are returned.",
    ),
    Argument(
        "streamer",
        Panel.RESULTS,
        Streamer(),
        None,
        "Give each piece of new text to this function, or new tokens to an object with transformers' put and end. "
        "Without it nothing is seen before the end.",
        with_beams=False,
        in_json=False,
        on_command_line=False,
    ),
    Argument(
        "pad_token_id",
        Panel.RESULTS,
        TokenId(),
        None,
        "This has no effect, because nothing is padded; it is allowed because transformers' calls give it.",
        on_command_line=False,
    ),
    Argument(
        "prompt_lookup_num_tokens",
        Panel.SPEED,
        Whole(least=1),
        None,
        "Guess up to this number of tokens from an earlier place of the text, and check them in one step: faster "
        "where a text repeats itself or its prompt. Without it no token is guessed.",
        with_beams=False,
    ),
    Argument(
        "max_matching_ngram_size",
        Panel.SPEED,
        Whole(least=1, most=32),  # a longer repetition has the same end
        3,
        "Guess what followed where the last tokens, up to this number, came before.",
        needs=_GUESSING,
    ),
)
ARGUMENTS = {row.name: row for row in _ROWS}

# What the model cards' hosted services called arguments, and an older name of transformers.
# {old name: (name, whether the old value is its opposite)}
OLD_NAMES = {
    "response_length": ("max_new_tokens", False),
    "remove_input": ("return_full_text", True),
    "stop_sequence": ("stop_strings", False),
}

# Arguments of transformers that are refused, with the reason.
LEFT_OUT = {
    "force_words_ids": "transformers 5 has left it out, and 4's search often returns texts without the words; "
    "sequence_bias makes words likelier",
    "constraints": "transformers 5 has left it out; sequence_bias makes words likelier",
    "stopping_criteria": "stop_strings, stop_token_ids and max_time end a text",
    "prefix_allowed_tokens_fn": "a function in logits_processor can set scores to minus infinity",
    "assistant_model": "prompt_lookup_num_tokens guesses without a second model",
    "negative_prompt_ids": "there is no guidance",
    "guidance_scale": "there is no guidance",
    "watermarking_config": "texts are not marked",
    "penalty_alpha": "transformers 5 has left contrastive search out",
    "dola_layers": "transformers 5 has left it out",
    "top_h": "top_p, min_p and typical_p leave out unlikely tokens",
    "token_healing": "prompts stay as they are",
    "encoder_repetition_penalty": "repetition_penalty counts the prompt",
    "encoder_no_repeat_ngram_size": "no_repeat_ngram_size counts the prompt",
    "use_mtp": "the model predicts one token at a time",
    "assistant_early_exit": "prompt_lookup_num_tokens guesses without a second model",
    "custom_generate": "no code of others is run",
}

# Values of these that change nothing, beside None: they are taken.
_HARMLESS: dict[str, tuple[Any, ...]] = {
    "penalty_alpha": (0,),
    "guidance_scale": (1,),
    "token_healing": (False,),
    "encoder_repetition_penalty": (1,),
    "encoder_no_repeat_ngram_size": (0,),
    "use_mtp": (False,),
}

# Arguments of transformers that are taken whatever their values are, because they do not change a text.
NO_EFFECT = (
    *("use_cache", "cache_implementation", "cache_config", "max_cache_len", "prefill_chunk_size", "low_memory"),
    *("batch_size", "num_workers", "padding", "return_text", "return_dict_in_generate", "remove_invalid_values"),
    *("output_attentions", "output_hidden_states", "compile_config", "disable_compile", "synced_gpus"),
    *("decoder_start_token_id", "is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule"),
    *("assistant_confidence_threshold", "assistant_lookbehind", "target_lookbehind", "tokenizer"),
)


def is_refused(name: str, value: Any) -> bool:
    """Whether a value of an argument is refused, because neo-tf does not have the argument."""
    return name in LEFT_OUT and value is not None and value not in _HARMLESS.get(name, ())


def default(name: str) -> Any:
    """The table's default of an argument, as the default of a dataclass's field."""
    value = ARGUMENTS[name].default
    return field(default_factory=value.copy) if isinstance(value, dict) else value


def explained(options: type[_Options]) -> type[_Options]:
    """Adds the meanings of a dataclass's fields to its docstring."""
    names = [one.name for one in fields(options) if one.name in ARGUMENTS]  # type: ignore[arg-type]  # a dataclass
    lines = [f"        {name}: {ARGUMENTS[name].meaning}" for name in names]
    options.__doc__ = "\n".join([f"{options.__doc__}", "    Args:", *lines])
    return options


def rows_of(options: Any) -> Iterator[tuple[Argument, Any]]:
    """The rows of the table that a dataclass has as its fields, each with the field's value."""
    for one in fields(options):
        if one.name in ARGUMENTS:
            yield ARGUMENTS[one.name], getattr(options, one.name)


def check_fields(options: Any) -> None:
    """Checks those fields of a dataclass that are arguments.

    Raises:
        RequestError: a value that is not allowed, with the argument's name.
    """
    for row, value in rows_of(options):
        row.check(value)


def markdown() -> str:
    """The table as docs/generation.md shows it."""
    lines = []
    for panel in Panel:
        lines += [f"### {panel}", "", "| argument | allowed values | default | meaning |", "|---|---|---|---|"]
        for row in _ROWS:
            if row.panel == panel:
                lines.append(f"| `{row.name}` | {row.kind.words} | `{row.default!r}` | {_told(row)} |")
        lines.append("")
    return "\n".join(lines)


def _told(row: Argument) -> str:
    """A row's meaning, and where it applies."""
    parts = [row.meaning]
    if row.meaning_of_false:
        parts.append(f"False: {row.meaning_of_false}")
    if row.needs:
        parts.append(f"It needs {row.needs.words}.")
    if not row.with_beams:
        parts.append("It does not go with num_beams above 1.")
    if row.results:
        parts.append(f"It adds {_names(row.results)} to a result.")
    if row.beam_results:
        parts.append(f"With beams it adds {_names(row.beam_results)}.")
    if not row.in_json:
        parts.append("Only calls from Python can give it.")
    return " ".join(parts)


def _names(names: tuple[str, ...]) -> str:
    return " and ".join(f"`{name}`" for name in names)


if __name__ == "__main__":
    print(markdown())
