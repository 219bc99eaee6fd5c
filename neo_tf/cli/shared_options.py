"""Arguments and options that several commands take."""

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


class Format(StrEnum):
    """Formats that a checkpoint can be written in."""

    keras = "keras"
    huggingface = "huggingface"
    mesh_tf = "mesh-tf"


Source = Annotated[
    str,
    typer.Argument(
        metavar="SRC", help="A checkpoint: a folder of any format, the original's model.ckpt-N, or a hub id."
    ),
]
Destination = Annotated[
    Path, typer.Argument(metavar="DST", help="The folder to write. It appears whole, or not at all.")
]
Force = Annotated[bool, typer.Option("--force", help="Replace DST where it exists and is not empty.")]
ConfigPath = Annotated[Path | None, typer.Option("--config", help="The model's config, if not beside the weights.")]
VocabSize = Annotated[int | None, typer.Option("--n-vocab", help="Trim a padded vocabulary to so many ids.", min=1)]
To = Annotated[Format, typer.Option(help="The format to write.")]
