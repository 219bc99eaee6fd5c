"""`neo-tf verify`: the source's logits against the exported graphs'."""

from pathlib import Path
from typing import Annotated

import typer

from neo_tf.cli.console import count_progress
from neo_tf.cli.shared_options import AdapterPath, ConfigPath, MoePolicy, Source
from neo_tf.cli.source import open_source, read_text
from neo_tf.onnx_folder import PrecisionName


def verify(
    src: Source,
    onnx_dir: Annotated[Path, typer.Argument(metavar="ONNX_DIR", help="The ONNX folder that was exported from SRC.")],
    tokens: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="The number of tokens to compare. By default random tokens go past the local layers' window, and a "
            "text is cut where the model's context ends.",
            min=1,
        ),
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A text in UTF-8 to compare on, of the kind that the model was trained on. Its perplexity is shown, "
            "too. By default random tokens are compared.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="The seed of the random tokens.", min=0)] = 0,
    precision: Annotated[
        PrecisionName | None,
        typer.Option(
            metavar="NAME",
            help="The precision to compare, such as int8. The folder must hold it; by default it is its first one.",
        ),
    ] = None,
    config: ConfigPath = None,
    moe_policy: MoePolicy = None,
    adapter: AdapterPath = None,
    tolerance: Annotated[
        float,
        typer.Option(
            metavar="X",
            help="The largest absolute difference of a logit that passes in fp32. Other precisions have fixed limits.",
            min=0,
        ),
    ] = 1e-4,
) -> None:
    """Compare the source's logits with the exported graphs' at every position, by prefill and token by token."""
    from neo_tf.cli.verify_report import check_deviations, print_deviations
    from neo_tf.evaluation.verify import Verification

    checkpoint = open_source(src, config=config, moe_policy=moe_policy, adapter=adapter)
    planned = Verification.plan(
        checkpoint, onnx_dir, tokens=tokens, text=read_text(text), seed=seed, precision=precision
    )
    with count_progress("verifying", planned.work) as progress:
        deviations = planned.run(progress)
    print_deviations(planned, deviations)
    check_deviations(planned, deviations, tolerance)
