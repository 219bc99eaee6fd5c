"""What `neo-tf verify` shows of its deviations, and the limits that it holds them against."""

from collections.abc import Sequence

from neo_tf.cli.console import console, results, summary_table
from neo_tf.errors import NeoTFError
from neo_tf.evaluation.deviation import LIMITS, Deviation
from neo_tf.evaluation.verify import Verification


def print_deviations(planned: Verification, deviations: Sequence[Deviation]) -> None:
    """Prints a table with a row for each deviation."""
    if planned.checkpoint.config.moe_layers:
        console.print("note: compared without a limit on the experts' capacity, as in decoding")
    columns = ["graph", "run", "error", "at", "cosine", "top-1"]
    if planned.has_text:
        columns.append("perplexity")
    table = summary_table(*columns)
    for found in deviations:
        row = [
            found.graph.removesuffix(".onnx"),
            found.mode.replace("step by step", "steps"),
            f"{found.error:.1e}",
            f"{found.position}:{found.token_id}",
            f"{found.cosine:.6f}",
            f"{found.agreement:.1%}",
        ]
        if found.perplexity is not None:
            row.append(f"{found.perplexity:.2f} {found.perplexity_change:+.2%}")
        table.add_row(*row)
    results.print(table)


def check_deviations(planned: Verification, deviations: Sequence[Deviation], tolerance: float) -> None:
    """Prints within which limits all deviations are.

    Raises:
        NeoTFError: One is not; the message says which limit it exceeds.
    """
    precision = planned.precision
    for found in deviations:
        if failure := found.failure(precision, tolerance):
            raise NeoTFError(f"{planned.folder.path}: {found.graph}, {found.mode}: {failure}")
    if precision in LIMITS:
        limits = LIMITS[precision]
        passed = f"within the limits for {precision}: cosine at least {limits.cosine}"
        if planned.has_text:
            passed += f", top-1 {limits.agreement:.0%}, perplexity at most +{limits.perplexity:.1%}"
    else:
        worst = max(found.error for found in deviations)
        passed = f"the largest error {worst:.2e} is within {tolerance:.0e}"
    console.print(f"{planned.tokens} tokens: {passed}")
