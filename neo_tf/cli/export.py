"""`neo-tf export`: a checkpoint as an ONNX folder."""

import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

import neo_tf
from neo_tf.cli.console import byte_progress
from neo_tf.cli.shared_options import (
    ConfigPath,
    Destination,
    Force,
    MoePolicy,
    Precision,
    Revision,
    Source,
    TokenizerPath,
    VocabSize,
)
from neo_tf.cli.source import open_source, print_written, read_text


class Ops(StrEnum):
    """Operators of an exported folder."""

    fused = "fused"
    standard = "standard"


class Target(StrEnum):
    """What an exported folder runs on."""

    cpu = "cpu"
    cuda = "cuda"


def export(
    src: Source,
    dst: Destination,
    precision: Annotated[
        list[Precision] | None, typer.Option(help="Of weights and arithmetic; fp32 by default. Given again: several.")
    ] = None,
    target: Annotated[
        Target | None, typer.Option(help="What it is to run on; cuda for fp16 and bf16, else cpu.")
    ] = None,
    ops: Annotated[
        Ops, typer.Option(help="standard: model.onnx alone, in ONNX's standard operators, for other runtimes.")
    ] = Ops.fused,
    calibrate: Annotated[
        Path | None,
        typer.Option(metavar="TEXT_FILE", help="For int8 and int4: round for what the model computes on this text."),
    ] = None,
    tokenizer: TokenizerPath = None,
    config: ConfigPath = None,
    n_vocab: VocabSize = None,
    revision: Revision = None,
    moe_policy: MoePolicy = None,
    force: Force = False,
):
    """Export a checkpoint as an ONNX folder that decodes without TensorFlow or PyTorch."""
    started = time.perf_counter()
    checkpoint = open_source(src, n_vocab, tokenizer=tokenizer, config=config, revision=revision, moe_policy=moe_policy)
    text = calibrate and read_text(calibrate)
    with byte_progress("exporting", checkpoint.nbytes) as progress:
        names = [one.value for one in precision or [Precision.fp32]]
        options = {"target": target and target.value, "ops": ops.value, "calibrate": text, "force": force}
        neo_tf.export_onnx(checkpoint, dst, names, **options, progress=progress)
    what = "ONNX in standard operators" if ops == Ops.standard else "ONNX"
    print_written(checkpoint, dst, f"{what}, {', '.join(names)}", started)
