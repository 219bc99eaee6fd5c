"""The command `neo-tf generate`: one prompt as its text is written, or many as lines of JSON."""

import contextlib
import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from neo_tf.cli.console import console, export_progress, token_progress
from neo_tf.cli.generation_options import RESULTS, read_options, takes_options
from neo_tf.cli.shared_options import ChosenPrecision, Device, Model, MoePolicy, Revision, Threads, TokenizerPath
from neo_tf.errors import OutputError, RequestError
from neo_tf.sizes import bytes_of

BATCH_SIZE = 8
_JOBS = "Many prompts"
# What cannot be shown while one text is written.
_MORE_THAN_TEXT = ("num_return_sequences", "num_beams", "return_tensors", "logprobs", "prompt_logprobs")


class InputFormat(StrEnum):
    """What a file of prompts holds."""

    jsonl = "jsonl"
    txt = "txt"


def _option(words, *names, panel=_JOBS, **more):
    return typer.Option(*names, help=words, rich_help_panel=panel, **more)


@takes_options
def generate(
    model: Model,
    prompts: Annotated[
        list[str] | None,
        typer.Argument(metavar="PROMPT", help="Texts to continue; else standard input is one."),
    ] = None,
    input_file: Annotated[
        Path | None,
        _option('A file of prompts, - for standard input: lines as {"prompt": "a text", "top_k": 5}.', "--input"),
    ] = None,
    input_format: Annotated[
        InputFormat | None, _option("jsonl, or txt for a prompt a line; by default as the file's name ends.")
    ] = None,
    output: Annotated[Path | None, _option("Write a line of JSON for each prompt there, in their order.")] = None,
    resume: Annotated[bool, _option("Go on with a job that was killed.", "--resume")] = False,
    force: Annotated[bool, _option("Replace the output, and begin again.", "--force")] = False,
    skip_errors: Annotated[
        bool, _option("Write an error for a prompt that cannot be served, and go on.", "--skip-errors")
    ] = False,
    batch_size: Annotated[int, _option("Prompts that run together.", min=1)] = BATCH_SIZE,
    cache_memory: Annotated[
        str | None, _option("Memory for the caches of running texts, as 2GB; most of what is free by default.")
    ] = None,
    as_json: Annotated[
        bool, _option("One prompt too as a line of JSON, with all that is known of it.", "--json", panel=RESULTS)
    ] = False,
    prefix_cache_memory: Annotated[
        str | None, _option("Memory for common beginnings of prompts, which are computed once; 0 for none.")
    ] = None,
    device: Device = None,
    precision: ChosenPrecision = None,
    threads: Threads = None,
    tokenizer: TokenizerPath = None,
    revision: Revision = None,
    moe_policy: MoePolicy = None,
    **arguments,
):
    """Continue a text, and show it as it is written; or many, as lines of JSON."""
    from neo_tf.model_cache import fingerprint, resolve_model
    from neo_tf.runtime.arguments import GenerateArguments
    from neo_tf.runtime.jobs.job import Job
    from neo_tf.runtime.jobs.results import JobFile, JobStream
    from neo_tf.runtime.pipeline import TextGenerationPipeline

    arguments = read_options(arguments)
    GenerateArguments.parse(arguments)  # what is wrong is said before a model is exported or loaded
    memory = {"cache_bytes": cache_memory and bytes_of("cache_memory", cache_memory)}
    memory["prefix_cache_bytes"] = prefix_cache_memory and bytes_of("prefix_cache_memory", prefix_cache_memory)
    if prompts and input_file:
        raise RequestError("PROMPT and --input are both given: one source is enough")
    to_file = output and str(output) != "-"
    _check_output(output if to_file else None, input_file, resume, force)
    if resume and output.is_file() and not JobFile.partial_of(output).exists():
        console.print(f"{output}: finished already")
        return
    if not prompts and not input_file:
        prompts = [_standard_input()]

    def load(slots):
        chosen = precision and precision.value
        folder = resolve_model(model, tokenizer, revision, export_progress, moe_policy, chosen)
        return folder, TextGenerationPipeline(folder, tokenizer, device, slots, threads, chosen, **memory)

    more = any(name in arguments for name in _MORE_THAN_TEXT)
    if not (input_file or output or as_json or more) and len(prompts) == 1:
        _show(load(1)[1], prompts[0], arguments)
        return
    with contextlib.ExitStack() as stack:
        lines, total, format = _lines(stack, prompts, input_file, input_format)
        results = JobFile(output, resume=resume, force=force) if to_file else JobStream()
        stack.callback(results.close)
        if prompts:
            each = max(arguments.get(name, 1) for name in ("num_return_sequences", "num_beams"))
            # Two at least: quantised rows are decoded in pairs, and a prompt's text must not depend on their number.
            batch_size = min(batch_size, max(len(prompts) * each, 2))
        batch_size = max(batch_size, arguments.get("num_beams", 1))
        folder, generator = load(batch_size)
        job = {
            "model": fingerprint(folder, tokenizer),
            "device": generator.session.device,
            "in_pairs": generator.session.in_pairs,  # quantised texts of a batch size of 1 may be others
            "precision": generator.session.precision,
            "format": format,
            "seed": arguments.pop("seed", None),
            "arguments": arguments,
        }
        seed = results.begin(job)
        with _told(results), token_progress("generating", total, results.done) as progress:
            Job(generator, arguments, seed, results, skip_errors, progress).run(lines)
    if results.errors:
        where = output if to_file else "its line"
        raise RequestError(
            f'{results.errors} of {results.done} prompts could not be served: "error" in {where} says why'
        )


def _check_output(output, input_file, resume, force):
    if (resume or force) and not output:
        raise RequestError(f"{'--resume' if resume else '--force'} needs an --output file")
    if resume and force:
        raise RequestError("--resume goes on and --force begins again: one of them")
    if output and input_file and output.exists() and input_file.exists() and output.samefile(input_file):
        raise OutputError(f"{output}: is the input itself")


def _standard_input():
    """All of it as one prompt."""
    if sys.stdin is None or sys.stdin.isatty():
        raise RequestError("no prompt: give one after the model, on standard input, or a file of them with --input")
    try:
        return sys.stdin.read().removesuffix("\n")
    except UnicodeDecodeError:
        raise RequestError("standard input: not a text in UTF-8") from None


def _lines(stack, prompts, path, format):
    """The job's lines, how many there are where that is known and shown, and their format."""
    from neo_tf.runtime.jobs.prompts import Given, Lines, count_lines

    if path is None:
        return Given(prompts), len(prompts), InputFormat.txt.value
    format = format or (InputFormat.txt if path.suffix == ".txt" else InputFormat.jsonl)
    piped = str(path) == "-"
    file = sys.stdin if piped else stack.enter_context(path.open("rb"))
    total = count_lines(path) if console.is_terminal and path.is_file() else None
    return Lines(file, "standard input" if piped else path, format == InputFormat.jsonl), total, format.value


@contextlib.contextmanager
def _told(results):
    """Says how a job that stops here can go on."""
    try:
        yield
    except BaseException:
        if results.partial and results.done:
            console.print(f"{results.partial}: results so far: {results.done}; the same with --resume goes on")
        raise


def _show(generator, prompt, arguments):
    """Continues one prompt as its text is written."""
    started, count = None, 0

    def show(text):
        nonlocal started, count
        if started is None:
            started = time.perf_counter()
            sys.stdout.write(prompt if arguments.get("return_full_text", True) else "")
        count += bool(text)
        sys.stdout.write(text)
        sys.stdout.flush()

    generator(prompt, streamer=show, **arguments)
    seconds = time.perf_counter() - started
    sys.stdout.write("\n")
    if sys.stderr.isatty() and count > 1:
        rate = (count - 1) / seconds
        console.print(f"{count} pieces of text, {rate:.0f} a second on {generator.session.device}", style="dim")
