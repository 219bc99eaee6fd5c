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
from neo_tf.console import byte_progress, console, count_progress, results, summary_table
from neo_tf.errors import NeoTFError, OutputError, RequestError, one_line
from neo_tf.onnx_folder import PRECISIONS, find_precision, read_config
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


Precision = StrEnum("Precision", [(name, name) for name in PRECISIONS])


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
Model = Annotated[str, typer.Argument(metavar="MODEL", help="An ONNX folder, a checkpoint in any format, or a hub id.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N; by default what it was exported for.")]
ChosenPrecision = Annotated[Precision | None, typer.Option(help="One of an ONNX folder's; its first by default.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads; one a core by default.", min=1, max=256)]
Force = Annotated[bool, typer.Option("--force", help="Replace DST where it exists and is not empty.")]
TokenizerPath = Annotated[
    Path | None, typer.Option("--tokenizer", help="A tokenizer.json, or its folder; else the one beside the weights.")
]
ConfigPath = Annotated[Path | None, typer.Option("--config", help="The model's config, if not beside the weights.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id.")]
MoePolicy = Annotated[
    str | None, typer.Option(help="all, none or threshold: the second expert, where the original draws at random.")
]
VocabSize = Annotated[int | None, typer.Option("--n-vocab", help="Trim a padded vocabulary to so many ids.", min=1)]
To = Annotated[Format, typer.Option(help="The format to write.")]


LENGTH, SAMPLING, PENALTIES = "Length and end", "Sampling", "Penalties"  # panels of `generate --help`


def _of(panel, text, *names, **more):
    return typer.Option(*names, help=text, rich_help_panel=panel, **more)


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


@app.command()
def generate(
    model: Model,
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="The text to continue; else standard input is read.")
    ] = None,
    max_new_tokens: Annotated[int | None, _of(LENGTH, "Stop after so many new tokens; 256 by default.")] = None,
    max_length: Annotated[int | None, _of(LENGTH, "Stop after so many, the prompt's included.")] = None,
    min_new_tokens: Annotated[int | None, _of(LENGTH, "Do not end the text before so many new tokens.", min=0)] = None,
    min_length: Annotated[int | None, _of(LENGTH, "Before so many, the prompt's included.", min=0)] = None,
    max_time: Annotated[float | None, _of(LENGTH, "Stop after so many seconds.")] = None,
    stop_strings: Annotated[list[str] | None, _of(LENGTH, "Stop after this text. Given again: several.")] = None,
    include_stop_str_in_output: Annotated[bool, _of(LENGTH, "Whether that text is shown.")] = True,
    eos_token_id: Annotated[list[int] | None, _of(LENGTH, "Stop after this token; else the model's own.")] = None,
    do_sample: Annotated[bool, _of(SAMPLING, "Draw tokens, not always the most likely.", "--do-sample")] = False,
    temperature: Annotated[float | None, _of(SAMPLING, "Below 1 is tamer, above 1 wilder.")] = None,
    top_k: Annotated[int | None, _of(SAMPLING, "Of the k most likely tokens; 50 by default, 0 is all.", min=0)] = None,
    top_p: Annotated[float | None, _of(SAMPLING, "Of the most likely tokens that add up to p.")] = None,
    min_p: Annotated[float | None, _of(SAMPLING, "Of tokens at least p times as likely as the first.")] = None,
    typical_p: Annotated[float | None, _of(SAMPLING, "Of tokens of nearly the expected information.")] = None,
    epsilon_cutoff: Annotated[float | None, _of(SAMPLING, "Of tokens of at least this probability.")] = None,
    eta_cutoff: Annotated[float | None, _of(SAMPLING, "The same, and less where many are likely.")] = None,
    seed: Annotated[int | None, _of(SAMPLING, "Draw the same text again.", min=0)] = None,
    repetition_penalty: Annotated[float | None, _of(PENALTIES, "Above 1: of all tokens so far.")] = None,
    presence_penalty: Annotated[float | None, _of(PENALTIES, "Of new tokens that have come.")] = None,
    frequency_penalty: Annotated[float | None, _of(PENALTIES, "Of new tokens, each time they come.")] = None,
    no_repeat_ngram_size: Annotated[int | None, _of(PENALTIES, "No n tokens come twice.", min=0)] = None,
    suppress_tokens: Annotated[str | None, _of(PENALTIES, "Tokens that must not come, as 5,7.")] = None,
    bad_words_ids: Annotated[str | None, _of(PENALTIES, "Sequences that must not come, as [[5], [7, 8]].")] = None,
    logit_bias: Annotated[str | None, _of(PENALTIES, 'Added to tokens\' logits, as {"5": -2.5}.')] = None,
    return_full_text: Annotated[bool, typer.Option(help="Whether the prompt is shown before its text.")] = True,
    device: Device = None,
    precision: ChosenPrecision = None,
    threads: Threads = None,
    tokenizer: TokenizerPath = None,
    revision: Revision = None,
    moe_policy: MoePolicy = None,
):
    """Continue a text, and show it as it is written."""
    from runtime.arguments import GenerateArguments
    from runtime.models import resolve_model
    from runtime.pipeline import TextGenerationPipeline

    arguments = {
        "max_new_tokens": max_new_tokens,
        "max_length": max_length,
        "min_new_tokens": min_new_tokens,
        "min_length": min_length,
        "max_time": max_time,
        "stop_strings": stop_strings,
        "include_stop_str_in_output": include_stop_str_in_output,
        "eos_token_id": eos_token_id,
        "do_sample": do_sample,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "typical_p": typical_p,
        "epsilon_cutoff": epsilon_cutoff,
        "eta_cutoff": eta_cutoff,
        "seed": seed,
        "repetition_penalty": repetition_penalty,
        "presence_penalty": presence_penalty,
        "frequency_penalty": frequency_penalty,
        "no_repeat_ngram_size": no_repeat_ngram_size,
        "suppress_tokens": suppress_tokens and _whole_numbers("suppress_tokens", suppress_tokens),
        "bad_words_ids": bad_words_ids and _json("bad_words_ids", bad_words_ids),
        "logit_bias": logit_bias and _json("logit_bias", logit_bias),
    }
    GenerateArguments.parse(arguments)  # what is wrong is said before a model is exported or loaded
    if prompt is None:
        if sys.stdin is None or sys.stdin.isatty():
            raise RequestError("no prompt: give one after the model, or on standard input")
        prompt = sys.stdin.read().removesuffix("\n")

    chosen = precision and precision.value
    folder = resolve_model(model, tokenizer, revision, _export_bar, moe_policy, chosen)
    generator = TextGenerationPipeline(folder, tokenizer, device, 1, threads, chosen)
    started, count = None, 0

    def show(text):
        nonlocal started, count
        if started is None:
            started = time.perf_counter()
            sys.stdout.write(prompt if return_full_text else "")
        count += bool(text)
        sys.stdout.write(text)
        sys.stdout.flush()

    generator(prompt, streamer=show, **arguments)
    seconds = time.perf_counter() - started
    sys.stdout.write("\n")
    if sys.stderr.isatty() and count > 1:
        rate = (count - 1) / seconds
        console.print(f"{count} pieces of text, {rate:.0f} a second on {generator.session.device}", style="dim")


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
    asked = {name: text if text is None else _whole_numbers(name, text) for name, text in lists.items()}
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
        folder = resolve_model(model, tokenizer, revision, _export_bar, moe_policy, chosen)
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


def _export_bar(size):
    return byte_progress("exporting once", size)


def _whole_numbers(name, text):
    """ "1,2,4" -> [1, 2, 4]."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise RequestError(f"{name} must be whole numbers with commas between, as 1,2,4, not {text!r}") from None


def _json(name, text):
    try:
        return json.loads(text)
    except ValueError:
        raise RequestError(f"{name} must be JSON, not {text!r}") from None


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
