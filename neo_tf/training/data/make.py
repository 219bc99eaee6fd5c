"""Making tfrecords of texts: once, in several processes, and so that a job that was killed goes on."""

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from neo_tf.errors import DataError, NeoTFError, OutputError, RequestError
from neo_tf.file_names import TOKENIZER_FILE
from neo_tf.json_files import write_json
from neo_tf.progress import Progress, no_progress
from neo_tf.tokenizer_backend import load_tokenizer
from neo_tf.training.data.encoding import HowToEncode, encode
from neo_tf.training.data.find_texts import split_as_the_original
from neo_tf.training.data.output import (
    DATASET_FILE,
    RecordFiles,
    check_replaceable,
    locked,
    partial_of,
    read_made,
    write_made,
)
from neo_tf.training.data.packing import Packer
from neo_tf.training.data.recipe import ORIGINAL, Recipe, Totals
from neo_tf.training.data.text_batches import Position, text_batches

END_OF_TEXT = "<|endoftext|>"
PADDING = "<|padding|>"
_NOTED_EVERY = 5.0  # seconds


def make_tfrecords(
    files: Sequence[Path],
    folder: Path | str,
    tokenizer_files: Mapping[str, bytes],
    recipe: Recipe,
    *,
    processes: int = 1,
    force: bool = False,
    progress: Progress = no_progress,
    noted_every: float = _NOTED_EVERY,
) -> Totals:
    """Tokenises texts into tfrecord files. The folder appears when all is in it.

    Until then the files lie in FOLDER.partial. A call with the same arguments goes on with what another one left
    there, even where that was killed; the result is the same. It does not depend on `processes` either.

    Args:
        files: The texts, in the order in which they are read.
        folder: The folder to write. Where it was made by the same call before, nothing is done.
        tokenizer_files: The tokenizer's files, {name: content}.
        recipe: What decides the records.
        processes: The number of processes that tokenise.
        force: Whether a folder that was made before is replaced, and an unfinished job begun anew.
        progress: Is told of the bytes of the files that were read.
        noted_every: Seconds after which it is noted how far the work is.

    Raises:
        DataError: A file is damaged, or a document cannot be read.
        OutputError: The folder cannot be written, is there already, or holds another job that is unfinished.
        RequestError: The tokenizer and the recipe do not fit.
    """
    folder = Path(folder).resolve()
    job = _Job(files, folder, tokenizer_files, recipe)
    if folder.exists() and not force:
        made = read_made(folder)
        if made.get("job") == job.identity and "totals" in made:
            job.check_skipped(made["totals"])
            return Totals(**made["totals"])
        if not folder.is_dir() or any(folder.iterdir()):
            raise OutputError(f"{folder}: exists already (--force replaces it)")
    try:
        if folder.exists():
            check_replaceable(folder)
        with contextlib.closing(job):
            job.prepare(force)
            totals = job.run(processes, progress, noted_every)
            job.finish(totals)
        return totals
    except OSError as error:
        if isinstance(error, NeoTFError):
            raise
        raise OutputError(f"{error.filename or folder}: cannot be written: {error.strerror or error}") from None


class _Job:
    """One folder that is made.

    Its work is in parts. There is one, but with the original's rules one for each of the original's processes.
    """

    def __init__(
        self, files: Sequence[Path], folder: Path, tokenizer_files: Mapping[str, bytes], recipe: Recipe
    ) -> None:
        self.folder = folder
        self.partial = partial_of(folder)
        self.recipe = recipe
        self.tokenizer_files = tokenizer_files
        backend = load_tokenizer(tokenizer_files, "the tokenizer")
        self.tokenizer = backend.tokenizer
        self.n_vocab = max(self.tokenizer.get_vocab().values()) + 1
        self.separator = self._separator(backend.special_tokens.get("eos_token"))
        self.parts = [list(files)]
        if recipe.packing == ORIGINAL:
            self.parts = split_as_the_original(list(files), recipe.original_processes)
        # What must be equal for a job to go on. A job that a document has ended goes on with skip_errors.
        self.identity = {
            **{key: value for key, value in asdict(recipe).items() if key != "skip_errors"},
            "separator": self.separator,
            "tokenizer": hashlib.sha256(self.tokenizer.to_str().encode()).hexdigest(),
            "split_special_tokens": self.tokenizer.encode_special_tokens,
            "texts": _fingerprint(files),
        }
        self._part = 0
        self._packer: Packer = recipe.packer(self.separator)
        self._writer = RecordFiles(self.partial, recipe.files_per, self._name)
        self._totals = Totals()
        self._lock = -1
        self._is_worth_keeping = True

    def prepare(self, force: bool) -> None:
        """Makes FOLDER.partial, or finds the unfinished job there."""
        if force and self.partial.exists():
            check_replaceable(self.partial)
            shutil.rmtree(self.partial)
        self.partial.mkdir(parents=True, exist_ok=True)
        self._lock = locked(self.partial)
        noted = read_made(self.partial)
        if not noted and any(self.partial.iterdir()):
            raise OutputError(f"{self.partial}: holds no unfinished job of this command: move it away")
        changed = [key for key, value in self.identity.items() if noted and noted["job"].get(key) != value]
        if changed:
            raise OutputError(
                f"{self.partial}: an unfinished job with another value of {changed[0]!r} (--force begins anew)"
            )

    def check_skipped(self, totals: Mapping[str, Any]) -> None:
        """Raises DataError where documents were left out before, but must not be."""
        if totals["skipped"] and not self.recipe.skip_errors:
            raise DataError(f"{totals['first_error']} (--skip-errors leaves such documents out)")

    def run(self, processes: int, progress: Progress, noted_every: float) -> Totals:
        """Writes all records, from where it was noted last."""
        position = self._restore()
        is_split = self.tokenizer.encode_special_tokens
        how = HowToEncode(self.tokenizer.to_str(), self.recipe.cleaning, is_split)
        noted = time.monotonic()
        for part in range(self._part, len(self.parts)):
            if part > self._part:
                self._part = part
                self._packer = self.recipe.packer(self.separator)
                position = Position(skipped=position.skipped, first_error=position.first_error)
            batches = text_batches(
                self.parts[part], position, self.recipe.text_field, self.recipe.skip_errors, progress
            )
            for batch, encoded in encode(batches, how, processes):
                for token_ids, begins_file in zip(encoded, batch.begins_file, strict=True):
                    self._totals.documents += 1
                    self._totals.tokens += len(token_ids)
                    self._write(self._packer.add(token_ids, begins_file))
                position = batch.end
                self._totals.skipped = position.skipped
                self._totals.first_error = position.first_error
                if time.monotonic() - noted >= noted_every:
                    self._note(position)
                    noted = time.monotonic()
            self._write(self._packer.finish())
            self._totals.lost += self._packer.lost
            self._writer.end_part()
        return self._totals

    def finish(self, totals: Totals) -> None:
        """Writes what lies beside the records, and gives the folder its name."""
        if not totals.records:
            raise DataError(f"{self.parts[0][0]}: all texts together have {totals.tokens} tokens: too few for a record")
        self._part = len(self.parts)
        self._note(Position(skipped=totals.skipped, first_error=totals.first_error))
        for name, content in {TOKENIZER_FILE: self.tokenizer.to_str().encode(), **self.tokenizer_files}.items():
            if "/" not in name:  # chat templates lie in a folder: they are not needed here
                (self.partial / name).write_bytes(content)
        write_json(self.partial / DATASET_FILE, self._dataset_config())
        write_made(self.partial, {"job": self.identity, "totals": asdict(totals)})
        if self.folder.exists():
            check_replaceable(self.folder)
            shutil.rmtree(self.folder)
        self.partial.rename(self.folder)

    def close(self) -> None:
        """Lets go of the folder. What was written stays for the next run, where it is worth it."""
        self._writer.close()
        if self._lock >= 0:
            os.close(self._lock)
        if self.partial.exists() and not self._is_worth_keeping:
            shutil.rmtree(self.partial, ignore_errors=True)

    def _restore(self) -> Position:
        """Where the work begins: where it was noted last, or at the first document."""
        state = read_made(self.partial).get("state")
        if state is None:
            self._note(Position())
            return Position()
        self.check_skipped(state["totals"])
        self._part = state["part"]
        self._totals = Totals(**state["totals"])
        self._writer.restore(state["files"])
        self._packer.restore(state["packer"])
        return Position(**state["position"])

    def _note(self, position: Position) -> None:
        """Notes how far the work is, after all before it is on the disk."""
        state = {
            "part": self._part,
            "position": asdict(position),
            "totals": asdict(self._totals),
            "files": self._writer.state(),
            "packer": self._packer.state(),
        }
        write_made(self.partial, {"job": self.identity, "state": state})
        self._writer.publish()
        self._is_worth_keeping = self._totals.documents > 0

    def _write(self, records: list[Any]) -> None:
        for record in records:
            self._writer.write(record)
        self._totals.records += len(records)

    def _name(self, number: int, count: int, is_full: bool) -> str:
        begin = f"{self.recipe.name}_{number}"
        plain = f"{begin}_{count}.tfrecords"
        if self.recipe.packing != ORIGINAL:
            return plain
        # The original leaves the process out of its last file's name, so that one may replace another's: not here.
        needs_process = is_full or plain in self._writer.names
        return f"{begin}_{self._part}_{count}.tfrecords" if needs_process else plain

    def _separator(self, end_of_text: str | None) -> int:
        """The id behind each document."""
        separator = self.recipe.separator
        if separator is None:
            separator = self.tokenizer.token_to_id(end_of_text or END_OF_TEXT)
        if separator is None:
            raise RequestError("the tokenizer names no end-of-text token: --separator must give the id")
        if not 0 <= separator < self.n_vocab:
            raise RequestError(f"--separator {separator}: the tokenizer has the ids 0 to {self.n_vocab - 1}")
        return separator

    def _dataset_config(self) -> dict[str, Any]:
        """The original's dataset config for these files."""
        padding = self.tokenizer.token_to_id(PADDING)
        return {
            "n_vocab": self.n_vocab,
            "path": str(self.folder / f"{self.recipe.name}_*.tfrecords"),
            "eval_path": "",
            "tokenizer_path": str(self.folder / TOKENIZER_FILE),
            "eos_id": self.separator,
            "padding_id": self.separator if padding is None else padding,
        }


def _fingerprint(files: Sequence[Path]) -> str:
    """Differs where other files are read, or files that have changed."""
    seen = hashlib.sha256()
    for path in files:
        about = path.stat()
        line = f"{path.absolute()}\0{about.st_size}\0{about.st_mtime_ns}\n"
        seen.update(line.encode(errors="surrogateescape"))
    return seen.hexdigest()
