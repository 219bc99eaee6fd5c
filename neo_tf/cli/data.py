"""`neo-tf data`: makes and inspects training data, and trains tokenizers."""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from neo_tf.cli.console import byte_progress, console
from neo_tf.cli.data_report import print_made, print_reports
from neo_tf.cli.help import HelpfulCommand
from neo_tf.cli.shared_options import TokenizerPath
from neo_tf.errors import DataError, RequestError

_RULES = "The original's rules"
_BYTES_OF_A_PROCESS = 4 * 10**6  # of fewer, another process does not pay

app = typer.Typer(
    help="Make and inspect training data, and train tokenizers.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Texts = Annotated[
    list[Path],
    typer.Argument(
        metavar="TEXT",
        help="Files of texts, or folders of them: plain text (.txt, and any other name), lines of JSON (.jsonl), "
        "archives (.tar), and all of these compressed (.gz, .zst, .xz, .bz2).",
    ),
]
TextField = Annotated[str, typer.Option(metavar="NAME", help="The key of the text in lines of JSON.")]
Include = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATTERN",
        help="Read those files of a folder that fit this pattern, such as '*.py'. It can be given several times. "
        "Without it the kinds of files above are read.",
    ),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATTERN", help="Do not read those files of a folder that fit this pattern, such as 'test/*'."
    ),
]
SkipErrors = Annotated[
    bool,
    typer.Option("--skip-errors", help="Leave out documents that cannot be read. Without it the first ends the job."),
]
ReplaceData = Annotated[bool, typer.Option("--force", help="Replace DST, and do not go on with an unfinished job.")]


@app.command(cls=HelpfulCommand)
def make(
    texts: Texts,
    dst: Annotated[Path, typer.Argument(metavar="DST", help="The folder to write. It appears when it is complete.")],
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="The tokenizer: a tokenizer.json, a folder that holds one, or a hub id. By default GPT-2's.",
        ),
    ] = None,
    n_ctx: Annotated[
        int, typer.Option("--n-ctx", metavar="N", help="The tokens of a sequence: the model's n_ctx.", min=1)
    ] = 2048,
    name: Annotated[
        str, typer.Option(metavar="NAME", help="The beginning of the files' names: NAME_0_100000.tfrecords.")
    ] = "data",
    files_per: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="The number of records in a file. Training reads the files in random order, and each from its "
            "beginning to its end.",
            min=1,
        ),
    ] = 100_000,
    separator: Annotated[
        int | None,
        typer.Option(
            metavar="ID", help="The token id behind each document. By default the tokenizer's end-of-text token.", min=0
        ),
    ] = None,
    overlap: Annotated[
        bool,
        typer.Option(
            "--overlap",
            help="Begin each record with the last token of the one before, so that this token is learnt, too.",
        ),
    ] = False,
    whole_documents: Annotated[
        bool,
        typer.Option("--whole-documents", help="Write a record for each document, for the original's generic_text."),
    ] = False,
    ftfy: Annotated[
        bool,
        typer.Option(
            "--ftfy",
            help="Mend broken Unicode, and normalise to NFKC, with the library ftfy. By default nothing is changed.",
        ),
    ] = False,
    wikitext_detokenize: Annotated[
        bool,
        typer.Option(
            "--wikitext-detokenize",
            help="Put Wikitext's spaces back as they were. It is for Wikitext alone, and damages other texts.",
        ),
    ] = False,
    text_field: TextField = "text",
    include: Include = None,
    exclude: Exclude = None,
    skip_errors: SkipErrors = False,
    original_rules: Annotated[
        bool,
        typer.Option(
            "--original-rules",
            help="Write the files that the original's create_tfrecords.py writes, which loses the ends of documents.",
            rich_help_panel=_RULES,
        ),
    ] = False,
    minimum_size: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="The tokens that the end of a document must have to be carried to the next file.",
            min=0,
            rich_help_panel=_RULES,
        ),
    ] = 100,
    original_processes: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="The number of the original's processes, of which each writes files of its own.",
            min=1,
            rich_help_panel=_RULES,
        ),
    ] = 1,
    processes: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="The number of processes that tokenise. The files are the same with any. By default one for each "
            "core, and fewer for small texts.",
            min=1,
            max=256,
        ),
    ] = None,
    force: ReplaceData = False,
) -> None:
    """Tokenise texts into tfrecord files for training. If it was interrupted, the same command goes on."""
    from neo_tf.checkpoints.tokenizer_files import find_tokenizer
    from neo_tf.config_values import GPT2_VOCAB_SIZE
    from neo_tf.training.data.cleaning import Cleaning
    from neo_tf.training.data.find_texts import find_texts, find_texts_as_the_original
    from neo_tf.training.data.make import make_tfrecords
    from neo_tf.training.data.output import partial_of
    from neo_tf.training.data.recipe import DOCUMENTS, ORIGINAL, STREAM, Recipe

    started = time.perf_counter()
    if original_rules and (whole_documents or include or exclude):
        raise RequestError("--original-rules does not go together with --whole-documents, --include or --exclude")
    packing = STREAM
    if original_rules:
        packing = ORIGINAL
    elif whole_documents:
        packing = DOCUMENTS
    recipe = Recipe(
        n_ctx=n_ctx,
        name=name,
        files_per=files_per,
        packing=packing,
        separator=separator,
        overlap=overlap,
        minimum_size=minimum_size,
        original_processes=original_processes,
        cleaning=Cleaning(ftfy, wikitext_detokenize),
        text_field=text_field,
        skip_errors=skip_errors,
    )
    if original_rules:
        files = find_texts_as_the_original(texts)
    else:
        files = find_texts(texts, include or (), exclude or (), without=(dst, partial_of(dst)))
    # GPT-2's tokenizer, or the one that is named, whatever its size is.
    tokenizer_files = find_tokenizer(None, GPT2_VOCAB_SIZE if tokenizer is None else 2**31, tokenizer)
    size = sum(path.stat().st_size for path in files)
    was_there = dst.exists() and not force
    workers = processes or min(_cores(), 1 + size // _BYTES_OF_A_PROCESS)
    with _told(partial_of(dst)), byte_progress("tokenising", size) as progress:
        totals = make_tfrecords(files, dst, tokenizer_files, recipe, processes=workers, force=force, progress=progress)
    print_made(dst, totals, time.perf_counter() - started, was_there)


@app.command(cls=HelpfulCommand)
def inspect(
    paths: Annotated[
        list[str],
        typer.Argument(metavar="PATH", help="tfrecord files, folders that hold some, or globs in quotes."),
    ],
    tokenizer: TokenizerPath = None,
    n_ctx: Annotated[
        int | None,
        typer.Option("--n-ctx", metavar="N", help="Also look for records that are too short for this n_ctx.", min=1),
    ] = None,
    n_vocab: Annotated[
        int | None,
        typer.Option("--n-vocab", metavar="N", help="Also look for ids that are not below this number.", min=1),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a line of JSON for each file.")] = False,
) -> None:
    """Show what is in tfrecord files, and check each record. Ends with 1 where something is wrong."""
    from neo_tf.training.data.files import find_files, natural_order
    from neo_tf.training.data.inspect import inspect_files

    files = natural_order(find_files(paths))
    size = sum(Path(path).stat().st_size for path in files)
    with byte_progress("reading", size) as progress:
        reports = list(inspect_files(files, n_ctx, n_vocab, progress))
    print_reports(reports, tokenizer, as_json)
    wrong = [report for report in reports if report.faults]
    if wrong:
        raise DataError(f"{len(wrong)} of {len(reports)} files are wrong; the first fault: {wrong[0].faults[0]}")


@app.command(cls=HelpfulCommand)
def tokenizer(
    texts: Texts,
    dst: Annotated[
        Path,
        typer.Argument(metavar="DST", help="The folder to write: tokenizer.json and tokenizer_config.json."),
    ],
    vocab_size: Annotated[
        int,
        typer.Option("--n-vocab", metavar="N", help="The number of tokens. By default as many as GPT-2 has.", min=1),
    ] = 50257,
    special_token: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TOKEN",
            help="A special token beside <|endoftext|> and <|padding|>. It can be given several times.",
        ),
    ] = None,
    pad_to: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Fill the vocabulary up with unused tokens to a multiple of this number, such as 128.",
            min=1,
            max=65536,
        ),
    ] = 1,
    text_field: TextField = "text",
    include: Include = None,
    exclude: Exclude = None,
    skip_errors: SkipErrors = False,
    force: Annotated[bool, typer.Option("--force", help="Replace DST if it exists and is not empty.")] = False,
) -> None:
    """Train a byte-level BPE tokenizer, of GPT-2's kind, on texts."""
    from neo_tf.training.data.find_texts import find_texts
    from neo_tf.training.data.train_tokenizer import train_tokenizer

    started = time.perf_counter()
    files = find_texts(texts, include or (), exclude or (), without=(dst,))
    with byte_progress("reading", sum(path.stat().st_size for path in files)) as progress:
        count = train_tokenizer(
            files,
            dst,
            vocab_size,
            special_tokens=special_token or (),
            pad_to=pad_to,
            text_field=text_field,
            skip_errors=skip_errors,
            force=force,
            progress=progress,
        )
    console.print(f"{dst}: a tokenizer with {count:,} tokens, {time.perf_counter() - started:.1f} s")
    if count < vocab_size:
        console.print(f"note: the texts gave no more than {count:,} of {vocab_size:,} tokens")


def _cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextlib.contextmanager
def _told(partial: Path) -> Iterator[Any]:
    """Says that the job inside can be continued, where it is interrupted and has come so far."""
    try:
        yield
    except BaseException:
        if (partial / "made.json").exists():
            console.print(f"{partial}: unfinished; the same command goes on with it")
        raise
