"""What `neo-tf generate` says arguments of generation by: a table, an option for each row."""

import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any

import typer

from neo_tf.cli.shared_options import whole_numbers
from neo_tf.errors import RequestError

LENGTH, SAMPLING, BEAMS = "Length and end", "Sampling", "Beams"  # panels of the help
PENALTIES, SPEED, RESULTS = "Penalties", "Speed", "Results"
# Arguments of a pipeline's call that a command line has no use for: functions, arrays, and what does nothing.
LEFT_OUT = ("streamer", "logits_processor", "output_scores", "output_logits", "pad_token_id")


def _json(name, text):
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise RequestError(f"{name} must be JSON, not {text!r}") from None


def _early_stopping(name, text):
    values = {"true": True, "false": False, "never": "never"}
    if text.lower() not in values:
        raise RequestError(f"{name} must be true, false or never, not {text!r}")
    return values[text.lower()]


_METAVARS = {int: "N", float: "X", str: "TEXT", list[int]: "N", list[str]: "TEXT"}


@dataclass(frozen=True)
class _Option:
    """How the command line says an argument of generation: its panel of the help, its words, and its values' kind."""

    panel: str
    words: str
    kind: Any = float
    read: Callable | None = None  # function (name, text) of a value that is more than its kind
    names: tuple = ()
    limits: dict = field(default_factory=dict)

    @property
    def annotation(self):
        """As typer wants it."""
        metavar = _METAVARS.get(self.kind)  # short: the names must not be cut off in a narrow terminal
        option = typer.Option(*self.names, help=self.words, rich_help_panel=self.panel, metavar=metavar, **self.limits)
        return Annotated[self.kind | None, option]


_COUNT = {"kind": int, "limits": {"min": 0}}
_IDS, _JSON = {"kind": str, "read": whole_numbers}, {"kind": str, "read": _json}
# A row for each argument, by its name in GenerateArguments, in the order of the help.
OPTIONS = {
    "max_new_tokens": _Option(LENGTH, "Stop after so many new tokens; 256 by default.", int),
    "max_length": _Option(LENGTH, "Stop after so many, the prompt's included.", int),
    "min_new_tokens": _Option(LENGTH, "Do not end the text before so many new tokens.", **_COUNT),
    "min_length": _Option(LENGTH, "Do not end the text before so many, the prompt's included.", **_COUNT),
    "max_time": _Option(LENGTH, "Stop after so many seconds."),
    "stop_strings": _Option(LENGTH, "Stop after this text. Given again: several.", list[str]),
    "include_stop_str_in_output": _Option(LENGTH, "Whether that text is shown; it is by default.", bool),
    "eos_token_id": _Option(LENGTH, "Stop after this token; else the model's own. Given again: several.", list[int]),
    "stop_token_ids": _Option(LENGTH, "More token ids to stop after, as 5,7.", **_IDS),
    "forced_bos_token_id": _Option(LENGTH, "The token after a prompt of one.", int),
    "forced_eos_token_id": _Option(LENGTH, "The last token at the limit, or one of 5,7.", **_IDS),
    "exponential_decay_length_penalty": _Option(LENGTH, "Ends become likelier after 5 tokens, as [5, 1.2].", **_JSON),
    "handle_long_generation": _Option(LENGTH, "hole: leave out the beginning of a prompt that is too long.", str),
    "do_sample": _Option(SAMPLING, "Draw tokens, not always the most likely.", bool, names=("--do-sample",)),
    "temperature": _Option(SAMPLING, "Below 1 is tamer, above 1 wilder."),
    "top_k": _Option(SAMPLING, "Draw from the k most likely tokens; 50 by default, 0 is all.", **_COUNT),
    "top_p": _Option(SAMPLING, "Draw from the most likely tokens that add up to p."),
    "min_p": _Option(SAMPLING, "Draw from tokens at least p times as likely as the first."),
    "typical_p": _Option(SAMPLING, "Draw from tokens of nearly the expected information."),
    "epsilon_cutoff": _Option(SAMPLING, "Draw from tokens of at least this probability."),
    "eta_cutoff": _Option(SAMPLING, "The same, and less where many are likely."),
    "seed": _Option(SAMPLING, "Draw the same text again; of several prompts it is the first's.", **_COUNT),
    "num_beams": _Option(BEAMS, "Follow so many texts together, and return the likeliest.", int),
    "length_penalty": _Option(BEAMS, "Above 0 prefers long texts, below 0 short ones; 1 by default."),
    "early_stopping": _Option(BEAMS, "true, false or never: when to stop looking.", str, _early_stopping),
    "num_beam_groups": _Option(BEAMS, "In so many groups, which differ from each other.", int),
    "diversity_penalty": _Option(BEAMS, "Of a token, for each beam of other groups that takes it."),
    "repetition_penalty": _Option(PENALTIES, "Above 1 makes tokens that have come less likely."),
    "presence_penalty": _Option(PENALTIES, "Above 0 makes new tokens that have come less likely, once."),
    "frequency_penalty": _Option(PENALTIES, "The same, for each time that they came."),
    "no_repeat_ngram_size": _Option(PENALTIES, "No n tokens come twice.", **_COUNT),
    "suppress_tokens": _Option(PENALTIES, "Tokens that must not come, as 5,7.", **_IDS),
    "begin_suppress_tokens": _Option(PENALTIES, "Tokens that must not come first, as 5,7.", **_IDS),
    "bad_words_ids": _Option(PENALTIES, "Sequences that must not come, as [[5], [7, 8]].", **_JSON),
    "logit_bias": _Option(PENALTIES, 'Added to tokens\' logits, as {"5": -2.5}.', **_JSON),
    "sequence_bias": _Option(PENALTIES, "Added where a sequence would end, as [[[7, 8], -2.5]].", **_JSON),
    "return_full_text": _Option(RESULTS, "Whether the prompt is shown before its text; it is by default.", bool),
    "prefix": _Option(RESULTS, "A text that goes before prompts, and is not shown.", str),
    "prompt_lookup_num_tokens": _Option(
        SPEED, "Guess so many tokens where a text repeats itself or its prompt: faster there.", int
    ),
    "max_matching_ngram_size": _Option(SPEED, "Guess from where the last so many came before; 3 by default.", int),
    "num_return_sequences": _Option(RESULTS, "So many texts of each prompt; with --do-sample or --num-beams.", int),
    "return_tensors": _Option(RESULTS, "Token ids in place of text.", bool, names=("--return-tensors",)),
    "logprobs": _Option(RESULTS, "Log-probabilities of tokens, and of the so many likeliest.", **_COUNT),
    "prompt_logprobs": _Option(RESULTS, "The same of the prompt's tokens.", **_COUNT),
    "renormalize_logits": _Option(
        RESULTS, "Normalise what tokens are drawn by.", bool, names=("--renormalize-logits",)
    ),
}


def takes_options(command):
    """Gives a command that takes **arguments an option for each row of the table."""
    signature = inspect.signature(command)
    *own, _ = signature.parameters.values()
    kind = inspect.Parameter.KEYWORD_ONLY
    more = [inspect.Parameter(name, kind, default=None, annotation=row.annotation) for name, row in OPTIONS.items()]
    command.__signature__ = signature.replace(parameters=[*own, *more])
    return command


def read_options(given):
    """{name: value} of the options that were given, their texts read.

    Raises:
        RequestError: a text that cannot be read.
    """
    given = {name: value for name, value in given.items() if value is not None}
    return {name: OPTIONS[name].read(name, value) if OPTIONS[name].read else value for name, value in given.items()}
