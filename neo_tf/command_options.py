"""Arguments and options that several commands take."""

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from neo_tf.errors import RequestError
from neo_tf.onnx_folder import PRECISIONS

Precision = StrEnum("Precision", [(name, name) for name in PRECISIONS])

Model = Annotated[str, typer.Argument(metavar="MODEL", help="An ONNX folder, a checkpoint in any format, or a hub id.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N; by default what it was exported for.")]
ChosenPrecision = Annotated[Precision | None, typer.Option(help="One of an ONNX folder's; its first by default.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads; one a core by default.", min=1, max=256)]
TokenizerPath = Annotated[
    Path | None, typer.Option("--tokenizer", help="A tokenizer.json, or its folder; else the one beside the weights.")
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id.")]
MoePolicy = Annotated[
    str | None, typer.Option(help="all, none or threshold: the second expert, where the original draws at random.")
]


def whole_numbers(name, text):
    """ "1,2,4" -> [1, 2, 4]."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise RequestError(f"{name} must be whole numbers with commas between, as 1,2,4, not {text!r}") from None


def bytes_of(name, text):
    """ "500MB" or "1.5 GB" -> bytes; powers of 1000, as they are shown."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kMGT]?)B?", text.strip())
    if not found:
        raise RequestError(f"{name} must be a size such as 2GB or 500MB, not {text!r}")
    return int(float(found[1]) * 1000 ** " kMGT".index(found[2] or " "))
