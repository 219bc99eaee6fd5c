"""Training a tokenizer of GPT-2's kind: byte-level BPE."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from neo_tf.atomic import new_folder
from neo_tf.errors import DataError, OutputError, RequestError
from neo_tf.file_names import TOKENIZER_CONFIG_FILE, TOKENIZER_FILE
from neo_tf.json_files import write_json
from neo_tf.progress import Progress, no_progress
from neo_tf.tokenizer_backend import GPT2_CLASS
from neo_tf.training.data.make import END_OF_TEXT, PADDING
from neo_tf.training.data.text_batches import Position, text_batches

_BYTES = 256  # each is a token
_UNUSED = "<|unused{}|>"
_SETTINGS = {
    "tokenizer_class": GPT2_CLASS,
    "bos_token": END_OF_TEXT,
    "eos_token": END_OF_TEXT,
    "unk_token": END_OF_TEXT,
    "pad_token": PADDING,
}


def train_tokenizer(
    files: Sequence[Path],
    folder: Path | str,
    vocab_size: int,
    *,
    special_tokens: Sequence[str] = (),
    pad_to: int = 1,
    text_field: str = "text",
    skip_errors: bool = False,
    force: bool = False,
    progress: Progress = no_progress,
) -> int:
    """Trains a byte-level BPE tokenizer on texts, and writes a folder that all commands take as --tokenizer.

    <|endoftext|> is the token 0 and <|padding|> the token 1; other special tokens follow. The 256 bytes are tokens, so
    that every text can be written.

    Args:
        files: The texts.
        folder: The folder to write: tokenizer.json and tokenizer_config.json.
        vocab_size: The number of tokens. It may become smaller where the texts are few.
        special_tokens: Further special tokens.
        pad_to: The vocabulary is filled up with unused special tokens to a multiple of this.
        text_field: In lines of JSON, the key of the text.
        skip_errors: Whether documents that cannot be read are left out.
        force: Whether a folder that is not empty is replaced.
        progress: Is told of the bytes of the files that were read.

    Returns:
        The number of tokens.

    Raises:
        DataError: A document cannot be read, or there is no text.
        OutputError: The folder cannot be written.
        RequestError: The vocabulary is too small, or a special token is named twice.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    special = [END_OF_TEXT, PADDING, *special_tokens]
    if len({*special}) < len(special) or "" in special:
        raise RequestError(f"a special token is empty or named twice (there are {END_OF_TEXT} and {PADDING} already)")
    if vocab_size < _BYTES + len(special):
        raise RequestError(f"{vocab_size} tokens are too few: {len(special)} special tokens and {_BYTES} bytes are")
    _check_folder(Path(folder), force)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = _Texts(files, text_field, skip_errors, progress)
    tokenizer.train_from_iterator(iter(texts), trainer)
    if not texts.letters:
        raise DataError(f"{files[0]}: no text in all files together")
    missing = -tokenizer.get_vocab_size() % pad_to
    tokenizer.add_special_tokens([_UNUSED.format(number) for number in range(missing)])
    if force and Path(folder).exists():
        shutil.rmtree(folder)
    with new_folder(folder) as partial:
        (partial / TOKENIZER_FILE).write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
        write_json(partial / TOKENIZER_CONFIG_FILE, _SETTINGS)
    return tokenizer.get_vocab_size()


def _check_folder(folder: Path, force: bool) -> None:
    """Raises OutputError where a folder is there that cannot be written, before hours are spent on it."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise OutputError(f"{folder}: exists and is a file")
    held = {entry.name for entry in folder.iterdir()}
    if held and not force:
        raise OutputError(f"{folder}: exists and is not empty (--force replaces it)")
    foreign = sorted(held - {TOKENIZER_FILE, TOKENIZER_CONFIG_FILE})
    if foreign:
        raise OutputError(f"{folder}: holds {foreign[0]!r}, which this command did not write: not replaced")


class _Texts:
    """The texts of some files, with the number of letters that were read."""

    def __init__(self, files: Sequence[Path], text_field: str, skip_errors: bool, progress: Progress) -> None:
        self._batches = text_batches(files, Position(), text_field, skip_errors, progress)
        self.letters = 0

    def __iter__(self) -> Iterator[list[str]]:
        for batch in self._batches:
            self.letters += sum(map(len, batch.texts))
            yield batch.texts
