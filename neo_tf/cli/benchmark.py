"""`neo-tf benchmark`: speed and memory of a model."""

import contextlib
import json
from pathlib import Path
from typing import Annotated

import typer

from neo_tf.atomic import new_file
from neo_tf.cli.console import count_progress, export_progress
from neo_tf.cli.shared_options import (
    ChosenPrecision,
    Device,
    Model,
    MoePolicy,
    Revision,
    Threads,
    TokenizerPath,
    whole_numbers,
)
from neo_tf.errors import RequestError
from neo_tf.onnx_folder import OnnxFolder


def benchmark(
    model: Model,
    prompt_tokens: Annotated[int | None, typer.Option(help="Of the sequence that is decoded; 32 by default.")] = None,
    new_tokens: Annotated[int | None, typer.Option(help="Decoded after them; 128 by default.")] = None,
    prefills: Annotated[str | None, typer.Option(help="Prompts' lengths, as 128,512,1024.")] = None,
    contexts: Annotated[str | None, typer.Option(help="Lengths at which to decode, as 32,512,2000.")] = None,
    batches: Annotated[str | None, typer.Option(help="Sequences decoded together, as 1,2,4,8.")] = None,
    requests: Annotated[
        int | None, typer.Option(help="Measure so many requests at once instead, against one after the other.")
    ] = None,
    slots: Annotated[int | None, typer.Option(help="Of --requests, so many run at a time; 16 by default.")] = None,
    rounds: Annotated[int, typer.Option(help="Samples of each figure; the medians are shown.")] = 5,
    device: Device = None,
    precision: ChosenPrecision = None,
    threads: Threads = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all figures there.")] = None,
    plot_file: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Draw them there: .png or .svg; extra `plot`.")
    ] = None,
    tokenizer: TokenizerPath = None,
    revision: Revision = None,
    moe_policy: MoePolicy = None,
):
    """Measure speed and memory: decoding, prefill, long contexts, batches, loading, and the memory's bandwidth.

    With --requests, many requests at once: throughput, waiting, and the engine's own time.
    """
    from neo_tf.cli.benchmark_report import check_plot, plot, plot_serving, print_report, print_serving
    from neo_tf.evaluation.serving import ServingSettings, benchmark_serving
    from neo_tf.evaluation.speed import Settings, benchmark
    from neo_tf.model_cache import resolve_model

    lists = {"prefills": prefills, "contexts": contexts, "batches": batches}
    asked = {name: text if text is None else whole_numbers(name, text) for name, text in lists.items()}
    asked |= {"prompt_tokens": prompt_tokens, "new_tokens": new_tokens}
    kind, measure, draw, show = Settings, benchmark, plot, print_report
    if requests is not None:
        for name, value in asked.items():
            if value is not None:
                raise RequestError(f"{name} and requests are measured apart: give one of them")
        kind, measure, draw, show = ServingSettings, benchmark_serving, plot_serving, print_serving
        asked = {"requests": requests, "slots": slots}
    elif slots is not None:
        raise RequestError("slots needs requests: it says how many of them run at a time")
    if plot_file:
        check_plot(plot_file)
        if json_file == plot_file:
            raise RequestError(f"{plot_file}: the plot would replace the JSON file")
    with contextlib.ExitStack() as files:
        json_out, plot_out = (file and files.enter_context(new_file(file)) for file in (json_file, plot_file))
        chosen = precision and precision.value
        folder = OnnxFolder.read(resolve_model(model, tokenizer, revision, export_progress, moe_policy, chosen))
        asked |= {"rounds": rounds, "device": device, "threads": threads, "precision": chosen}
        settings = kind.within(folder.config.n_ctx, **asked)
        with count_progress("measuring", settings.work) as progress:
            figures = measure(folder, settings, progress)
        if json_out:
            json_out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
        if plot_out:
            draw(figures, plot_out, plot_file.suffix)
    show(figures)
