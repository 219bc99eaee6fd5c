"""`neo-tf verify`: the source's logits against the exported graphs'."""

from pathlib import Path
from typing import Annotated

import typer

import neo_tf
from neo_tf.cli.console import console, count_progress, results, summary_table
from neo_tf.cli.shared_options import ConfigPath, MoePolicy, Precision, Source
from neo_tf.cli.source import open_source, read_text
from neo_tf.errors import NeoTFError
from neo_tf.onnx_folder import OnnxFolder


def verify(
    src: Source,
    onnx_dir: Annotated[Path, typer.Argument(metavar="ONNX_DIR", help="The folder that was exported from SRC.")],
    tokens: Annotated[
        int | None, typer.Option(help="How many; past the window by default, or of a text its first n_ctx.", min=1)
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(help="A text of the model's kind to compare on; adds its perplexity. Else random tokens."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the random tokens.", min=0)] = 0,
    precision: Annotated[Precision | None, typer.Option(help="One of the folder's; its first by default.")] = None,
    config: ConfigPath = None,
    moe_policy: MoePolicy = None,
    tolerance: Annotated[float, typer.Option(help="Largest difference of a logit that passes, in fp32.", min=0)] = 1e-4,
):
    """Compare the source's logits with the exported graphs': every position, by prefill and token by token."""
    from neo_tf.evaluation.verify import LIMITS, sequences_of, verify_work

    checkpoint = open_source(src, config=config, moe_policy=moe_policy)
    folder = OnnxFolder.read(onnx_dir)
    precision = folder.find_precision(precision and precision.value)
    options = {"tokens": tokens, "text": text and read_text(text), "seed": seed}
    count = sum(map(len, sequences_of(folder, **options)))
    with count_progress("verifying", verify_work(count, folder, precision)) as progress:
        deviations = neo_tf.verify(checkpoint, folder, precision=precision, progress=progress, **options)
    if checkpoint.config.moe_layers:
        console.print("note: compared with room for every position in its experts, as a decoder must give it")
    table = summary_table("graph", "run", "error", "at", "cosine", "top-1", *["perplexity"] * bool(text))
    for found in deviations:
        graph, run = found.graph.removesuffix(".onnx"), found.mode.replace("step by step", "steps")
        row = [graph, run, f"{found.error:.1e}", f"{found.position}:{found.token_id}"]
        row += [f"{found.cosine:.6f}", f"{found.agreement:.1%}"]
        if text:
            row.append(f"{found.perplexity:.2f} {found.perplexity_change:+.2%}")
        table.add_row(*row)
    results.print(table)
    for found in deviations:
        if failure := found.failure(precision, tolerance):
            raise NeoTFError(f"{onnx_dir}: {found.graph}, {found.mode}: {failure}")
    if precision in LIMITS:
        limits = LIMITS[precision]
        told = f"cosine at least {limits.cosine}"
        told += f", top-1 {limits.agreement:.0%}, perplexity at most +{limits.perplexity:.1%}" if text else ""
        console.print(f"{count} tokens: within the limits for {precision}: {told}")
    else:
        worst = max(found.error for found in deviations)
        console.print(f"{count} tokens: the largest error {worst:.2e} is within {tolerance:.0e}")
