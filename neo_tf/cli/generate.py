"""The command `neo-tf generate`: one prompt as its text is written, or many as lines of JSON."""

import contextlib
import functools
import os
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from neo_tf.cli.console import console, export_progress, token_progress
from neo_tf.cli.generation_options import read_options, takes_options
from neo_tf.cli.shared_options import (
    AdapterPath,
    ChosenPrecision,
    Device,
    Model,
    MoePolicy,
    Revision,
    Threads,
    TokenizerPath,
    optional_size,
)
from neo_tf.cli.source import decoded
from neo_tf.errors import OutputError, RequestError
from neo_tf.runtime.argument_table import ARGUMENTS, Panel

if TYPE_CHECKING:
    from neo_tf.runtime.arguments import GenerateArguments
    from neo_tf.runtime.generation_config import ModelSettings
    from neo_tf.runtime.jobs.job import LineRunner
    from neo_tf.runtime.jobs.prompts import JobLines
    from neo_tf.runtime.jobs.results import JobFile, JobStream
    from neo_tf.runtime.pipeline import TextGenerationPipeline

BATCH_SIZE = 8
_JOBS = "Many prompts"


class InputFormat(StrEnum):
    """What the lines of an input file hold."""

    jsonl = "jsonl"
    txt = "txt"


def _option(words: str, *names: str, panel: str = _JOBS, **more: Any) -> Any:
    return typer.Option(*names, help=words, rich_help_panel=panel, **more)


@takes_options
def generate(
    model: Model,
    prompts: Annotated[
        list[str] | None,
        typer.Argument(metavar="PROMPT", help="Texts to continue. Without any, standard input is read as one prompt."),
    ] = None,
    as_json: Annotated[
        bool,
        _option("Return a line of JSON, for a single prompt too.", "--json", panel=Panel.RESULTS, metavar=""),
    ] = False,
    input_file: Annotated[
        Path | None,
        _option(
            "Read prompts from this file, or with - from standard input: lines of JSON such as "
            '{"prompt": "a text", "top_k": 5}.',
            "--input",
            metavar="FILE",
        ),
    ] = None,
    input_format: Annotated[
        InputFormat | None,
        _option(
            "Whether the lines of the input are JSON (jsonl) or the prompts themselves (txt). Without it a file whose "
            "name ends in .txt is txt, and any other is jsonl."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        _option(
            "Write a line of JSON for each prompt to this file, in the order of the prompts. Without it, or with -, "
            "the lines go to standard output.",
            metavar="FILE",
        ),
    ] = None,
    resume: Annotated[bool, _option("Continue a job that was interrupted.", "--resume", metavar="")] = False,
    force: Annotated[bool, _option("Replace the output file, and begin again.", "--force", metavar="")] = False,
    skip_errors: Annotated[
        bool,
        _option(
            "For a prompt that cannot be served, write an error as its result and continue. Without it the job ends "
            "there.",
            "--skip-errors",
            metavar="",
        ),
    ] = False,
    batch_size: Annotated[
        int, _option("Decode this number of sequences at the same time.", min=1, metavar="N")
    ] = BATCH_SIZE,
    cache_memory: Annotated[
        str | None,
        _option(
            "Use at most this memory for the KV caches of running sequences, such as 2GB. Without it most of the free "
            "memory is used.",
            metavar="SIZE",
        ),
    ] = None,
    prefix_cache_memory: Annotated[
        str | None,
        _option(
            "Use at most this memory to keep the KV caches of beginnings that prompts have in common, such as 500MB; 0 "
            "keeps none. Without it the memory of one whole context is used.",
            metavar="SIZE",
        ),
    ] = None,
    ray: Annotated[
        bool,
        _option(
            "Run the prompts of --input on the workers of a Ray cluster: that of $RAY_ADDRESS, or the one that this "
            "machine belongs to. The results are the same. It needs the extra ray.",
            "--ray",
            metavar="",
        ),
    ] = False,
    ray_workers: Annotated[
        int | None,
        _option(
            "Start this number of workers, each with a model of its own, --batch-size sequences and --threads CPUs, or "
            "with --device cuda a GPU. Without it there are as many as the cluster has room for.",
            min=1,
            metavar="N",
        ),
    ] = None,
    device: Device = None,
    precision: ChosenPrecision = None,
    threads: Threads = None,
    tokenizer: TokenizerPath = None,
    revision: Revision = None,
    moe_policy: MoePolicy = None,
    adapter: AdapterPath = None,
    **arguments: Any,
) -> None:
    """Continue texts. A single text is shown while it is written; several become lines of JSON."""
    from neo_tf.hub import tokenizer_path
    from neo_tf.runtime.arguments import GenerateArguments

    given = read_options(arguments)
    GenerateArguments.check(given)  # what is wrong is said before a model is exported or loaded
    loader = _Loader(
        model,
        tokenizer_path(tokenizer),
        revision,
        moe_policy,
        precision and precision.value,
        device,
        threads,
        cache_bytes=optional_size("--cache-memory", cache_memory, least=1),
        prefix_cache_bytes=optional_size("--prefix-cache-memory", prefix_cache_memory),
        adapter=adapter,
    )
    files = _Files(prompts, input_file, input_format, output, resume, force)
    files.check()
    if ray and not input_file:
        raise RequestError("--ray is for many prompts: give --input FILE")
    if ray_workers and not ray:
        raise RequestError("--ray-workers needs --ray")
    if ray and device and device.startswith("cuda:"):
        raise RequestError(f"--device {device}: with --ray each worker gets a GPU of its own: say --device cuda")
    if files.are_finished():
        console.print(f"{output}: finished already")
        return
    if not prompts and not input_file:
        prompts = [_standard_input()]
    options = GenerateArguments.parse(given, settings=loader.settings)
    streams = not as_json and all(ARGUMENTS[name].streams for name in given) and options.num_return_sequences == 1
    if streams and prompts and len(prompts) == 1 and not (input_file or output):
        _show(loader.load(options.slots_of_each), prompts[0], given, options)
    elif ray:
        _run_job_on_ray(loader, files, given, options, batch_size, ray_workers, skip_errors)
    else:
        _run_job(loader, files, prompts, given, options, batch_size, skip_errors)


@dataclass(frozen=True)
class _Loader:
    """Loads the model that the options of the same names describe."""

    model: str
    tokenizer: Path | str | None
    revision: str | None
    moe_policy: str | None
    precision: str | None
    device: str | None
    threads: int | None
    cache_bytes: int | None
    prefix_cache_bytes: int | None
    adapter: str | None

    @functools.cached_property
    def folder(self) -> Path:
        """The model's ONNX folder, exported where it is not."""
        from neo_tf.model_cache import resolve_model

        return resolve_model(
            self.model,
            self.tokenizer,
            self.revision,
            export_progress,
            self.moe_policy,
            self.precision,
            self.adapter,
        )

    @property
    def target(self) -> str:
        """The device that runs the model: "cpu" or "cuda"."""
        from neo_tf.onnx_folder import OnnxFolder

        return (self.device or OnnxFolder.read(self.folder).target).partition(":")[0]

    def digest(self) -> str:
        """A hash of the contents of the model's files and the tokenizer's."""
        from neo_tf.model_cache import content_digest

        return content_digest(self.folder, self.tokenizer)

    def for_others(self) -> "_Loader":
        """The same model for other processes, which load it from their own machines: without what was found here."""
        tokenizer = None if self.tokenizer is None else _absolute(self.tokenizer)
        adapter = None if self.adapter is None else _absolute(self.adapter)
        return replace(self, model=_absolute(self.model), tokenizer=tokenizer, adapter=adapter)

    @functools.cached_property
    def settings(self) -> "ModelSettings":
        """What the model says of generation."""
        from neo_tf.onnx_folder import OnnxFolder
        from neo_tf.runtime.generation_config import read_generation_config

        return read_generation_config(self.folder, OnnxFolder.read(self.folder).config)

    def load(self, slots: int) -> "TextGenerationPipeline":
        """A pipeline that decodes `slots` sequences at once. What nobody sets is as in generate, not drawn."""
        from neo_tf.runtime.pipeline import TextGenerationPipeline

        return TextGenerationPipeline(
            self.folder,
            self.tokenizer,
            self.device,
            slots,
            self.threads,
            self.precision,
            cache_bytes=self.cache_bytes,
            prefix_cache_bytes=self.prefix_cache_bytes,
            defaults={},
        )


def _absolute(name: Path | str) -> str:
    """A path that is there, from the root; a hub id as it is."""
    return str(Path(name).resolve() if Path(name).exists() else name)


@dataclass(frozen=True)
class _Files:
    """Where prompts come from and where results go, as the options of the same names say."""

    prompts: list[str] | None
    input: Path | None
    input_format: InputFormat | None
    output: Path | None
    resume: bool
    force: bool

    @property
    def file(self) -> Path | None:
        """The file that results are written to; None where they go to standard output."""
        return None if self.output is None or str(self.output) == "-" else self.output

    def check(self) -> None:
        """Raises RequestError or OutputError where the options do not go together."""
        if self.prompts and self.input:
            raise RequestError("PROMPT and --input are both given: one source is enough")
        if (self.resume or self.force) and not self.file:
            raise RequestError(f"{'--resume' if self.resume else '--force'} needs an --output file")
        if self.resume and self.force:
            raise RequestError("give --resume or --force, not both: one continues, the other begins again")
        if self.file and self.input and _is_same(self.file, self.input):
            raise OutputError(f"{self.file}: is the input itself")

    def are_finished(self) -> bool:
        """Whether a job that is to be resumed has written its output already."""
        from neo_tf.runtime.jobs.results import JobFile

        return bool(self.resume and self.file and self.file.is_file() and not JobFile.partial_of(self.file).exists())


def _is_same(file: Path, other: Path) -> bool:
    return file.exists() and other.exists() and file.samefile(other)


def _run_job(
    loader: _Loader,
    files: _Files,
    prompts: list[str] | None,
    given: dict[str, Any],
    options: "GenerateArguments",
    batch_size: int,
    skip_errors: bool,
) -> None:
    """Writes a line of JSON for each prompt.

    Args:
        prompts: those of the command line or of standard input; None where they are in a file.
        given: {name: value} of the arguments that were given.
        options: the same, checked.
    """
    from neo_tf.runtime.jobs.engine_runner import EngineRunner
    from neo_tf.runtime.jobs.open_line import settings_of

    with _open_job(files, prompts) as job:
        generator = loader.load(_slots(batch_size, prompts, options))
        arguments, seed = job.begin(loader, settings_of(generator), given)
        job.run(EngineRunner(generator, arguments, seed), skip_errors)


def _run_job_on_ray(
    loader: _Loader,
    files: _Files,
    given: dict[str, Any],
    options: "GenerateArguments",
    batch_size: int,
    workers: int | None,
    skip_errors: bool,
) -> None:
    """Does the same for the prompts of a file, on the workers of a Ray cluster."""
    from neo_tf.runtime.jobs.ray_runner import RayRunner

    with _open_job(files, None) as job:
        cuda = loader.target == "cuda"
        slots = _slots(batch_size, None, options)
        with (
            # Ray prints pages about each node that it loses; its own logs have them too, and a note is enough here.
            open(os.devnull, "w") as nowhere,
            contextlib.redirect_stdout(nowhere),
            contextlib.closing(RayRunner(loader.for_others(), slots, cuda, loader.threads, workers)) as runner,
        ):
            arguments, seed = job.begin(loader, runner.begin(), given)
            runner.set_arguments(arguments, seed)
            job.run(runner, skip_errors)


@dataclass(frozen=True)
class _OpenJob:
    """A job whose input and results are open."""

    files: _Files
    lines: "JobLines"
    total: int | None
    format: str
    results: "JobFile | JobStream"

    def begin(self, loader: _Loader, settings: Mapping[str, Any], given: dict[str, Any]) -> tuple[dict[str, Any], int]:
        """Begins the results, or goes on with them. Returns the arguments of all prompts, and the first one's seed."""
        from neo_tf.model_cache import fingerprint

        arguments = {name: value for name, value in given.items() if name != "seed"}
        # All that decides a job's results: a job that is resumed must have the same.
        header = {"model": fingerprint(loader.folder, loader.tokenizer), **settings}
        header |= {"format": self.format, "seed": given.get("seed"), "arguments": arguments}
        return arguments, self.results.begin(header)

    def run(self, runner: "LineRunner", skip_errors: bool) -> None:
        """Runs the job to its end."""
        from neo_tf.runtime.jobs.job import Job

        results = self.results
        with _told(results), token_progress("generating", self.total, results.done) as progress:
            Job(runner, results, skip_errors, progress).run(self.lines)
        if results.errors:
            where = self.files.file or "its line"
            raise RequestError(
                f'{results.errors} of {results.done} prompts could not be served: "error" in {where} says why'
            )


@contextlib.contextmanager
def _open_job(files: _Files, prompts: list[str] | None) -> Iterator[_OpenJob]:
    """Opens the input and the results of a job, and closes them."""
    from neo_tf.runtime.jobs.results import JobFile, JobStream

    with contextlib.ExitStack() as stack:
        lines, total, format = _lines(stack, prompts, files.input, files.input_format)
        results = JobFile(files.file, resume=files.resume, force=files.force) if files.file else JobStream()
        stack.callback(results.close)
        yield _OpenJob(files, lines, total, format, results)


def _slots(batch_size: int, prompts: list[str] | None, options: "GenerateArguments") -> int:
    """The number of slots: no more than the prompts take, and enough for the beams of one."""
    if prompts:
        # Two at least: quantised rows are decoded in pairs, and a prompt's text must not depend on their number.
        batch_size = min(batch_size, max(len(prompts) * options.slots_of_each, 2))
    return max(batch_size, options.beams.num_beams if options.beams else 1)


def _standard_input() -> str:
    """The whole of standard input as one prompt."""
    if sys.stdin is None or sys.stdin.isatty():
        raise RequestError("no prompt: give one after the model, on standard input, or a file of them with --input")
    # As bytes: a text is UTF-8 whatever encoding the terminal has.
    text = decoded(sys.stdin.buffer.read(), "standard input") if hasattr(sys.stdin, "buffer") else sys.stdin.read()
    return text.removesuffix("\n")


def _lines(
    stack: contextlib.ExitStack, prompts: list[str] | None, path: Path | None, format: InputFormat | None
) -> "tuple[JobLines, int | None, str]":
    """The job's lines, their number where it is known and shown, and their format. The stack closes the input file."""
    from neo_tf.runtime.jobs.prompts import Given, Lines, count_lines

    if path is None:
        given = prompts or []
        return Given(given), len(given), InputFormat.txt.value
    format = format or (InputFormat.txt if path.suffix == ".txt" else InputFormat.jsonl)
    piped = str(path) == "-"
    file = sys.stdin if piped else stack.enter_context(path.open("rb"))
    total = count_lines(path) if console.is_terminal and path.is_file() else None
    return Lines(file, "standard input" if piped else path, format == InputFormat.jsonl), total, format.value


@contextlib.contextmanager
def _told(results: "JobFile | JobStream") -> Iterator[None]:
    """Says how the job inside can be continued, where it is interrupted."""
    try:
        yield
    except BaseException:
        if results.partial and results.done:
            console.print(f"{results.partial}: {results.done} results so far; the same command with --resume continues")
        raise


def _show(
    generator: "TextGenerationPipeline", prompt: str, given: dict[str, Any], options: "GenerateArguments"
) -> None:
    """Continues one prompt, and shows its text while it is written; with beams, which show it only at their end."""
    started: float | None = None  # when the first piece came
    count = 0

    def show(text: str) -> None:
        nonlocal started, count
        if started is None:
            started = time.perf_counter()
            sys.stdout.write(prompt if options.return_full_text else "")
        if text:
            count += 1
        sys.stdout.write(text)
        sys.stdout.flush()

    if options.beams:
        (found,) = generator(prompt, **given)
        sys.stdout.write(found["generated_text"])
    else:
        generator(prompt, streamer=show, **given)
    ended = time.perf_counter()
    sys.stdout.write("\n")
    if started is not None and count > 1 and sys.stderr.isatty():
        rate = (count - 1) / (ended - started)
        console.print(f"{count} pieces of text, {rate:.0f} a second on {generator.session.device}", style="dim")
