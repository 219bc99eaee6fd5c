"""The options of `neo-tf generate` that are arguments of generation: one for each row of the table."""

import inspect
import re
from collections.abc import Callable
from typing import Annotated, Any

import typer

from neo_tf.runtime.argument_kinds import Flag, Whole
from neo_tf.runtime.argument_table import ARGUMENTS, Argument

_NO = "no_"  # begins the parameter of an option --no-NAME


def takes_options(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command that takes **arguments an option for each row of the table, after its first two parameters."""
    kind = inspect.Parameter.KEYWORD_ONLY
    signature = inspect.signature(command)
    *own, _ = signature.parameters.values()
    own = [parameter.replace(kind=kind) for parameter in own]
    more = [
        inspect.Parameter(name, kind, default=None, annotation=annotation)
        for row in ARGUMENTS.values()
        if row.on_command_line
        for name, annotation in _options(row).items()
    ]
    # What inspect.signature, and with it typer, reads. Functions have the attribute only once it is set.
    command.__signature__ = signature.replace(parameters=[*own[:2], *more, *own[2:]])  # type: ignore[attr-defined]
    return command


def read_options(given: dict[str, Any]) -> dict[str, Any]:
    """{name: value} of the options that were given.

    Args:
        given: {parameter: what the command line read, None where the option was not given}.

    Raises:
        RequestError: a text that cannot be read.
    """
    values = {}
    for parameter, value in given.items():
        if value is None:
            continue
        if parameter in ARGUMENTS:  # such as no_repeat_ngram_size
            values[parameter] = ARGUMENTS[parameter].kind.read(parameter, value)
        else:
            values[parameter.removeprefix(_NO)] = False
    return values


def _options(row: Argument) -> dict[str, Any]:
    """{parameter: annotation for typer} of an argument's option.

    A flag that is True by default has the option --no-NAME. Its --NAME is taken too, but not shown: it does nothing,
    and two long names leave no room for their help in a terminal of 80 columns.
    """
    flag = f"--{row.name.replace('_', '-')}"
    if row.has_opposite:
        flag += f"/--no-{row.name.replace('_', '-')}"
    if row.default is not True:
        return {row.name: _annotation(row, flag, _help(row, row.meaning))}
    no_flag = f"--no-{row.name.replace('_', '-')}"
    return {
        row.name: _annotation(row, flag, row.meaning, hidden=True),
        _NO + row.name: _annotation(row, no_flag, _help(row, row.meaning_of_false)),
    }


def _annotation(row: Argument, flag: str, words: str, **more: Any) -> Any:
    if isinstance(row.kind, Whole) and row.kind.least == 0:
        more["min"] = 0  # a negative number is wrong usage; other limits are checked with the call's arguments
    option = typer.Option(flag, help=words, rich_help_panel=row.panel, metavar=row.kind.metavar, **more)
    return Annotated[row.kind.option_type | None, option]


def _help(row: Argument, meaning: str) -> str:
    """The help of an option: what it does, whether it can be repeated, what it needs, and its default."""
    parts = [meaning]
    if row.kind.option_type == list[str]:
        parts.append("The option can be repeated.")
    if row.needs:
        parts.append(f"Needs {row.needs.words.replace('=True', '')}.")
    if not isinstance(row.kind, Flag) and not isinstance(row.default, tuple | dict | None):
        parts.append(f"[default: {str(row.default).lower()}]")
    return re.sub(r"\b[a-z]+(_[a-z]+)+\b", _as_option, " ".join(parts))


def _as_option(name: re.Match[str]) -> str:
    """An argument's name in a help text, as the option that it is."""
    return f"--{name[0].replace('_', '-')}" if name[0] in ARGUMENTS else name[0]
