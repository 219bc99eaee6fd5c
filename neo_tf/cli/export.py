"""`neo-tf export`: a checkpoint as an ONNX folder."""

import time
from pathlib import Path
from typing import Annotated

import typer

import neo_tf
from neo_tf.cli.console import byte_progress
from neo_tf.cli.shared_options import (
    AdapterPath,
    AllowNan,
    ConfigPath,
    Destination,
    Force,
    MoePolicy,
    Revision,
    Source,
    TokenizerPath,
    VocabSize,
)
from neo_tf.cli.source import open_source, print_written, read_text
from neo_tf.onnx_folder import Ops, PrecisionName, Target


def export(
    src: Source,
    dst: Destination,
    precision: Annotated[
        list[PrecisionName] | None,
        typer.Option(
            metavar="NAME",
            help="The precision of the weights and the arithmetic: fp32, fp16, bf16, int8 or int4; by default fp32. "
            "Give it several times for a folder with several precisions.",
        ),
    ] = None,
    target: Annotated[
        Target | None,
        typer.Option(
            metavar="NAME",
            help="The device that the folder is for: cpu or cuda. By default cuda for fp16 and bf16, else cpu.",
        ),
    ] = None,
    ops: Annotated[
        Ops,
        typer.Option(
            metavar="NAME",
            help="The operators of the graphs: fused uses ONNX Runtime's own, which are faster; standard writes "
            "model.onnx alone, with operators of the ONNX standard, for other runtimes.",
        ),
    ] = Ops.fused,
    calibrate: Annotated[
        Path | None,
        typer.Option(
            metavar="TEXT_FILE",
            help="A text in UTF-8. int8 and int4 weights are rounded so that the layers' outputs on it change least. "
            "By default each weight is rounded by itself.",
        ),
    ] = None,
    tokenizer: TokenizerPath = None,
    config: ConfigPath = None,
    n_vocab: VocabSize = None,
    revision: Revision = None,
    moe_policy: MoePolicy = None,
    adapter: AdapterPath = None,
    allow_nan: AllowNan = False,
    force: Force = False,
) -> None:
    """Export a checkpoint as an ONNX folder that decodes without TensorFlow or PyTorch."""
    started = time.perf_counter()
    checkpoint = open_source(
        src,
        tokenizer=tokenizer,
        config=config,
        revision=revision,
        moe_policy=moe_policy,
        n_vocab=n_vocab,
        adapter=adapter,
    )
    text = read_text(calibrate)
    precisions = [name.value for name in precision or [PrecisionName.fp32]]
    with byte_progress("exporting", checkpoint.nbytes) as progress:
        neo_tf.export_onnx(
            checkpoint,
            dst,
            precisions,
            target=target,
            ops=ops.value,
            calibrate=text,
            force=force,
            allow_nan=allow_nan,
            progress=progress,
        )
    what = "ONNX in standard operators" if ops == Ops.standard else "ONNX"
    print_written(checkpoint, dst, f"{what}, {', '.join(precisions)}", started)
