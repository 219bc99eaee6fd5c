"""Arguments and options that several commands take."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from neo_tf.errors import RequestError
from neo_tf.onnx_folder import PrecisionName
from neo_tf.sizes import bytes_of


class Format(StrEnum):
    """The formats that a checkpoint can be written in."""

    keras = "keras"
    huggingface = "huggingface"
    mesh_tf = "mesh-tf"


# ---- what is read

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="The model: an ONNX folder, a checkpoint in any format, or a Hugging Face hub id."
    ),
]
Source = Annotated[
    str,
    typer.Argument(
        metavar="SRC",
        help="The checkpoint to read: a folder in any format, a model.ckpt-N prefix of the original code, "
        "or a Hugging Face hub id.",
    ),
]
TokenizerPath = Annotated[
    Path | None,
    typer.Option(
        "--tokenizer",
        metavar="PATH",
        help="The tokenizer: a tokenizer.json, a folder that holds one, or a hub id. By default the one beside the "
        "weights.",
    ),
]
ConfigPath = Annotated[
    Path | None,
    typer.Option(
        "--config", metavar="FILE", help="The model's JSON config. By default the one that lies beside the weights."
    ),
]
Revision = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="The branch, tag or commit of a hub id. By default its main branch."),
]
AdapterPath = Annotated[
    str | None,
    typer.Option(
        "--adapter",
        metavar="PATH",
        help="A LoRA adapter of PEFT to merge into the weights: its folder, or its hub id. By default none is merged.",
    ),
]
MoePolicy = Annotated[
    str | None,
    typer.Option(
        metavar="POLICY",
        help="For mixtures of experts: whether a token goes to its second expert always (all), never (none), or if "
        "its gate is large enough (threshold). By default the model's config decides.",
    ),
]
VocabSize = Annotated[
    int | None,
    typer.Option(
        "--n-vocab",
        metavar="N",
        help="The number of token ids to keep of a padded vocabulary. By default all are kept.",
        min=1,
    ),
]

# ---- what is written

Destination = Annotated[
    Path,
    typer.Argument(metavar="DST", help="The folder to write. It appears when it is complete, or not at all."),
]
To = Annotated[Format, typer.Option(metavar="FORMAT", help="The format to write: keras, huggingface or mesh-tf.")]
Force = Annotated[bool, typer.Option("--force", help="Replace DST if it exists and is not empty.")]
AllowNan = Annotated[
    bool,
    typer.Option("--allow-nan", help="Write weights that hold NaN or Inf as they are. By default they are refused."),
]

# ---- how it runs

Device = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="The device that runs the model: cpu, cuda or cuda:N. By default the one that it was exported for.",
    ),
]
ChosenPrecision = Annotated[
    PrecisionName | None,
    typer.Option(
        metavar="NAME",
        help="The precision to run: fp32, fp16, bf16, int8 or int4. An ONNX folder must hold it; by default its first "
        "one is run. A checkpoint is exported in it, by default in fp32.",
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(metavar="N", help="The number of CPU threads. By default one for each core.", min=1, max=256),
]


def whole_numbers(option: str, text: str) -> list[int]:
    """Reads numbers that are separated by commas: "1,2,4" -> [1, 2, 4].

    Raises:
        RequestError: The text holds something else; the message names the option.
    """
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise RequestError(f"{option} must be numbers separated by commas, such as 1,2,4, not {text!r}") from None


def optional_size(option: str, text: str | None, least: int = 0) -> int | None:
    """Does what size_in_bytes does; returns None where no size is given."""
    return None if text is None else size_in_bytes(option, text, least)


def size_in_bytes(option: str, text: str, least: int = 0) -> int:
    """Reads a size such as 2GB.

    Raises:
        RequestError: It is no size, or less than `least` bytes.
    """
    size = bytes_of(option, text)
    if size < least:
        raise RequestError(f"{option} must be at least {least}, not {size}")
    return size
