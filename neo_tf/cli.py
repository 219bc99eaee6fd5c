"""The `neo-tf` command: each subcommand parses, calls one function, and prints."""

import contextlib
import json
import signal
import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

import neo_tf
from neo_tf.command_options import (
    ChosenPrecision,
    Device,
    Model,
    MoePolicy,
    Precision,
    Revision,
    Threads,
    TokenizerPath,
    whole_numbers,
)
from neo_tf.console import byte_progress, console, count_progress, export_progress, results, summary_table
from neo_tf.errors import NeoTFError, OutputError, RequestError, one_line
from neo_tf.generate_command import generate
from neo_tf.onnx_folder import find_precision, read_config
from neo_tf.output import new_file, readable_bytes

app = typer.Typer(
    help="GPT-Neo from a Mesh-TensorFlow checkpoint to production decoding on ONNX Runtime.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Format(StrEnum):
    """Formats that a checkpoint can be written in."""

    keras = "keras"
    huggingface = "huggingface"
    mesh_tf = "mesh-tf"


class Ops(StrEnum):
    """Operators of an exported folder."""

    fused = "fused"
    standard = "standard"


class Target(StrEnum):
    """What an exported folder runs on."""

    cpu = "cpu"
    cuda = "cuda"


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


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False):
    if version:
        print(f"neo-tf {neo_tf.__version__}")
        raise typer.Exit


@app.command()
def convert(
    src: Source,
    dst: Destination,
    to: To = Format.keras,
    tokenizer: TokenizerPath = None,
    config: ConfigPath = None,
    n_vocab: VocabSize = None,
    revision: Revision = None,
    moe_policy: MoePolicy = None,
    force: Force = False,
):
    """Convert a checkpoint between the original's format, Keras and Hugging Face."""
    started = time.perf_counter()
    checkpoint = _open(src, n_vocab, tokenizer=tokenizer, config=config, revision=revision, moe_policy=moe_policy)
    with byte_progress("converting", checkpoint.nbytes) as progress:
        neo_tf.save_checkpoint(checkpoint, dst, to.value, force=force, progress=progress)
    _written(checkpoint, dst, to.value, started)


@app.command()
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
    checkpoint = _open(src, n_vocab, tokenizer=tokenizer, config=config, revision=revision, moe_policy=moe_policy)
    text = calibrate and _read_text(calibrate)
    with byte_progress("exporting", checkpoint.nbytes) as progress:
        names = [one.value for one in precision or [Precision.fp32]]
        options = {"target": target and target.value, "ops": ops.value, "calibrate": text, "force": force}
        neo_tf.export_onnx(checkpoint, dst, names, **options, progress=progress)
    what = "ONNX in standard operators" if ops == Ops.standard else "ONNX"
    _written(checkpoint, dst, f"{what}, {', '.join(names)}", started)


@app.command()
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
    from export.verify import LIMITS, sequences_of, verify_work

    checkpoint = _open(src, config=config, moe_policy=moe_policy)
    precision = find_precision(onnx_dir, precision and precision.value)[0]
    options = {"tokens": tokens, "text": text and _read_text(text), "seed": seed}
    count = sum(map(len, sequences_of(checkpoint.config, onnx_dir, **options)))
    with count_progress("verifying", verify_work(count, onnx_dir, precision)) as progress:
        deviations = neo_tf.verify(checkpoint, onnx_dir, precision=precision, progress=progress, **options)
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


app.command()(generate)


@app.command()
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
    from neo_tf.benchmark_report import check_plot, plot, plot_serving, print_report, print_serving
    from runtime.benchmark import Settings, benchmark
    from runtime.benchmark_serving import ServingSettings, benchmark_serving
    from runtime.models import resolve_model

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
        folder = resolve_model(model, tokenizer, revision, export_progress, moe_policy, chosen)
        asked |= {"rounds": rounds, "device": device, "threads": threads, "precision": chosen}
        settings = kind.within(read_config(folder).n_ctx, **asked)
        with count_progress("measuring", settings.work) as progress:
            figures = measure(folder, settings, progress)
        if json_out:
            json_out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
        if plot_out:
            draw(figures, plot_out, plot_file.suffix)
    show(figures)


@app.command()
def init(
    size: Annotated[
        str, typer.Argument(metavar="SIZE", help="125M, 350M, 1.3B, 2.7B, or a config.json in either format.")
    ],
    dst: Destination,
    to: To = Format.keras,
    seed: Annotated[int, typer.Option(help="The same seed gives the same weights.", min=0)] = 0,
    tokenizer: TokenizerPath = None,
    force: Force = False,
):
    """Make a model with random weights: a start for training, a load for tests."""
    from neo_tf.checkpoints.initialise import random_checkpoint

    started = time.perf_counter()
    checkpoint = random_checkpoint(size, seed=seed, tokenizer=tokenizer)
    with byte_progress("initialising", checkpoint.nbytes) as progress:
        neo_tf.save_checkpoint(checkpoint, dst, to.value, force=force, progress=progress)
    _written(checkpoint, dst, to.value, started)


@app.command()
def info(
    path: Annotated[str, typer.Argument(metavar="PATH", help="A checkpoint in any format, or an ONNX folder.")],
):
    """Show what a model is: format, sizes, layers, options, precision and tokenizer."""
    from neo_tf.describe import describe

    table = summary_table("", "", header=False)
    for name, value in describe(path).items():
        table.add_row(name, value)
    results.print(table)


def _open(src, n_vocab=None, **opening):
    checkpoint = neo_tf.open_checkpoint(src, **opening)
    if opening.get("moe_policy") and checkpoint.config.moe_layers:
        console.print(f"note: second experts by {opening['moe_policy']!r}, whatever the original's config says")
    return checkpoint if n_vocab is None else checkpoint.with_vocab(n_vocab)


def _read_text(path):
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise RequestError(f"{path}: not a text in UTF-8") from None


def _written(checkpoint, dst, what, started):
    from neo_tf.variables import count_parameters

    size = sum(file.stat().st_size for file in dst.iterdir())
    count = f"{count_parameters(checkpoint.config) / 1e6:,.1f} million parameters"
    console.print(f"{dst}: {what}, {count}, {readable_bytes(size)}, {time.perf_counter() - started:.1f} s")


def main():
    """Runs the command. What neo-tf refuses is one line on standard error and exit status 1; wrong usage has 2."""
    # As for Ctrl-C: what is half written is removed on the way out.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        status = app(standalone_mode=False)
    except NeoTFError as error:
        _fail(error)
    except (KeyboardInterrupt, typer.Abort):
        raise SystemExit(130) from None
    except BrokenPipeError:  # the reader of a pipe went away, which is its right
        sys.stderr.close()
        raise SystemExit(1) from None
    except OSError as error:
        _fail(OutputError(f"{error.filename or 'file'}: {error.strerror or error}"))
    except MemoryError:
        _fail(NeoTFError("not enough memory"))
    except Exception as error:
        # typer's own errors of usage; it keeps their class to itself.
        if not hasattr(error, "format_message"):
            raise
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()
        else:
            print(
                f"error: {' '.join(error.format_message().split()).replace('Value error, ', '')} (see --help)",
                file=sys.stderr,
            )
        raise SystemExit(2) from None
    raise SystemExit(status if isinstance(status, int) else 0)


def _fail(error):
    print(f"error: {one_line(error)}", file=sys.stderr)
    raise SystemExit(1) from None


if __name__ == "__main__":
    main()
