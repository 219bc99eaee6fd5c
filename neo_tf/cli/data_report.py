"""What `neo-tf data` shows of training data."""

import json
from dataclasses import asdict, replace
from pathlib import Path

from neo_tf.cli.console import console, results, summary_table
from neo_tf.errors import CheckpointError
from neo_tf.training.data.inspect import FileReport
from neo_tf.training.data.recipe import Totals

_ROWS = 40  # of a table; of more files the middle ones are left out
_LETTERS = 400  # of the first text


def print_made(folder: Path, totals: Totals, seconds: float, was_there: bool) -> None:
    """Prints what was made, or that the same command had made it before."""
    counts = f"{totals.documents:,} documents, {totals.tokens:,} tokens, {totals.records:,} records"
    ended = "made before by the same command" if was_there else f"{seconds:.1f} s"
    console.print(f"{folder}: {counts}, {ended}")
    if totals.lost:
        console.print(f"note: {totals.lost:,} tokens are in no record: the original's rules leave them out")
    if totals.skipped:
        console.print(f"note: {totals.skipped:,} documents were left out; the first: {totals.first_error}")


def print_reports(reports: list[FileReport], tokenizer: Path | None, as_json: bool) -> None:
    """Prints what is in files: a table and the first text, or a line of JSON for each file."""
    if as_json:
        for report in reports:
            results.print(json.dumps(asdict(report)))
        return
    table = summary_table("file", "records", "tokens", "lengths", "ids", "")
    shown = [*reports]
    if len(reports) > _ROWS:
        shown = [*reports[: _ROWS // 2], *reports[-_ROWS // 2 :]]
    for number, report in enumerate(shown):
        if len(reports) > _ROWS and number == _ROWS // 2:
            table.add_row(f"… {len(reports) - _ROWS} more files", "", "", "", "", "")
        table.add_row(*_row(report))
    if len(reports) > 1:
        table.add_row(*_row(_sum(reports)))
    results.print(table)
    faults = [fault for report in reports for fault in report.faults]
    for fault in faults[:_ROWS]:
        results.print(fault)
    if len(faults) > _ROWS:
        results.print(f"… {len(faults) - _ROWS} more faults")
    first = next((report for report in reports if report.first), None)
    if first is not None:
        results.print(f"{Path(first.path).name}, record 0:\n{_text(first, reports, tokenizer)}")


def _row(report: FileReport) -> list[str]:
    lengths = f"{report.shortest:,}"
    if report.longest != report.shortest:
        lengths += f" to {report.longest:,}"
    ids = f"{report.lowest} to {report.highest}" if report.tokens else ""
    verdict = "wrong" if report.faults else "ok"
    return [Path(report.path).name, f"{report.records:,}", f"{report.tokens:,}", lengths, ids, verdict]


def _sum(reports: list[FileReport]) -> FileReport:
    """All files as if they were one."""
    held = [report for report in reports if report.records] or reports
    total = replace(held[0], path=f"{len(reports)} files", faults=[])
    total.records = sum(report.records for report in held)
    total.tokens = sum(report.tokens for report in held)
    total.shortest = min(report.shortest for report in held)
    total.longest = max(report.longest for report in held)
    total.lowest = min(report.lowest for report in held)
    total.highest = max(report.highest for report in held)
    total.faults = [fault for report in reports for fault in report.faults]
    return total


def _text(first: FileReport, reports: list[FileReport], tokenizer: Path | None) -> str:
    """The beginning of the first record as text; as token ids where no tokenizer is named or lies beside it."""
    from neo_tf.checkpoints.tokenizer_files import find_tokenizer, is_named
    from neo_tf.tokenizer_backend import load_tokenizer

    beside = Path(first.path).parent
    named = tokenizer or (beside if is_named(beside) else None)
    ids = " ".join(map(str, first.first[:16]))
    if named is None:
        return f"{ids} … (--tokenizer shows them as text)"
    backend = load_tokenizer(find_tokenizer(None, 2**31, named), named)
    size = max(backend.tokenizer.get_vocab().values()) + 1
    highest = max(report.highest for report in reports)
    if highest >= size or min(report.lowest for report in reports) < 0:
        if tokenizer is not None:
            raise CheckpointError(f"{tokenizer}: has {size} ids, but the records have ids up to {highest}")
        return f"{ids} … (the tokenizer beside them is another one)"
    return backend.tokenizer.decode(first.first, skip_special_tokens=False)[:_LETTERS]
