"""`neo-tf benchmark`: speed and memory of a model."""

from pathlib import Path
from typing import Annotated, Any

import typer

from neo_tf.cli.console import count_progress, export_progress
from neo_tf.cli.shared_options import (
    AdapterPath,
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

_SPEED = "Speed of one sequence, of prompts and of batches"
_SERVING = "Many requests at once"
_RESULTS = "Results"


def benchmark(
    model: Model,
    prompt_tokens: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="The length in tokens of the prompt of the sequence that is decoded. By default 32.",
            rich_help_panel=_SPEED,
        ),
    ] = None,
    new_tokens: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="The number of tokens that follow the prompt. By default 128.", rich_help_panel=_SPEED
        ),
    ] = None,
    prefills: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,...",
            help="The lengths in tokens of the prompts whose prefill is timed. By default 128,512,1024 and the "
            "model's context.",
            rich_help_panel=_SPEED,
        ),
    ] = None,
    contexts: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,...",
            help="The lengths in tokens of the context at which decode steps are timed. By default "
            "32,256,512,1024,1500,2000, as far as they fit.",
            rich_help_panel=_SPEED,
        ),
    ] = None,
    batches: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,...",
            help="The numbers of sequences that are decoded together. By default 1,2,4,8.",
            rich_help_panel=_SPEED,
        ),
    ] = None,
    requests: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Measure this number of requests, submitted at once and one after the other, in place of the "
            "speed above.",
            rich_help_panel=_SERVING,
        ),
    ] = None,
    slots: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="The number of requests that run at the same time. By default 16, or all if there are fewer.",
            rich_help_panel=_SERVING,
        ),
    ] = None,
    rounds: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="The number of samples of each figure. The medians are shown.",
            rich_help_panel=_RESULTS,
        ),
    ] = 5,
    json_file: Annotated[
        Path | None,
        typer.Option(
            "--json", metavar="FILE", help="Write all figures and samples to this file.", rich_help_panel=_RESULTS
        ),
    ] = None,
    plot_file: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            metavar="FILE",
            help="Draw the figures into this file. Its name ends in .png or .svg. This needs the extra `plot`.",
            rich_help_panel=_RESULTS,
        ),
    ] = None,
    device: Device = None,
    precision: ChosenPrecision = None,
    threads: Threads = None,
    tokenizer: TokenizerPath = None,
    revision: Revision = None,
    moe_policy: MoePolicy = None,
    adapter: AdapterPath = None,
) -> None:
    """Measure speed and memory: decoding, prefill, long contexts, batches, loading, and the memory's bandwidth.

    With --requests, measure many requests at once: their throughput, their waiting times, and the engine's own time.
    """
    from neo_tf.cli.benchmark_report import ReportFiles, print_figures
    from neo_tf.model_cache import resolve_model

    speed = {
        "prompt_tokens": prompt_tokens,
        "new_tokens": new_tokens,
        "prefills": _lengths("--prefills", prefills),
        "contexts": _lengths("--contexts", contexts),
        "batches": _lengths("--batches", batches),
    }
    _check_together(speed, requests, slots)
    common = {"rounds": rounds, "device": device, "threads": threads, "precision": precision}
    with ReportFiles.open(json_file, plot_file) as files:
        path = resolve_model(model, tokenizer, revision, export_progress, moe_policy, precision, adapter)
        folder = OnnxFolder.read(path)
        if requests is None:
            figures = _measure_speed(folder, speed | common)
        else:
            figures = _measure_serving(folder, {"requests": requests, "slots": slots} | common)
        files.write(figures)
    print_figures(figures)


def _lengths(option: str, text: str | None) -> list[int] | None:
    return None if text is None else whole_numbers(option, text)


def _check_together(speed: dict[str, Any], requests: int | None, slots: int | None) -> None:
    """Refuses options of the one measurement that are given with the other."""
    if requests is None:
        if slots is not None:
            raise RequestError("--slots needs --requests: it is the number of requests that run at the same time")
        return
    for name, value in speed.items():
        if value is not None:
            option = f"--{name.replace('_', '-')}"
            raise RequestError(f"{option} and --requests are measured apart: give one of them")


def _measure_speed(folder: OnnxFolder, options: dict[str, Any]) -> dict[str, Any]:
    from neo_tf.evaluation.speed import Settings, benchmark

    settings = Settings.within(folder.config.n_ctx, **options)
    with count_progress("measuring", settings.work) as progress:
        return benchmark(folder, settings, progress)


def _measure_serving(folder: OnnxFolder, options: dict[str, Any]) -> dict[str, Any]:
    from neo_tf.evaluation.serving import ServingSettings, benchmark_serving

    settings = ServingSettings.within(folder.config.n_ctx, **options)
    with count_progress("measuring", settings.work) as progress:
        return benchmark_serving(folder, settings, progress)
