"""What decides the records that are made of texts, and what is told of them afterwards."""

from dataclasses import dataclass, field

from neo_tf.errors import RequestError
from neo_tf.training.data.cleaning import Cleaning
from neo_tf.training.data.packing import OriginalRules, Packer, Stream, WholeDocuments

STREAM, ORIGINAL, DOCUMENTS = "stream", "original", "documents"


@dataclass(frozen=True)
class Recipe:
    """All that decides what the records are, beside the texts and the tokenizer.

    Args:
        n_ctx: The number of tokens of a sequence. A record has one more.
        name: What the files' names begin with.
        files_per: The records of a file.
        packing: "stream": all documents one after the other, without a loss. "original": by the original's rules.
            "documents": a record for each document.
        separator: The id behind each document. By default the tokenizer's end-of-text token.
        overlap: See Stream.
        minimum_size: See OriginalRules.
        original_processes: With the original's rules, the number of processes that it would have run with: each has
            texts and files of its own.
        cleaning: What is done to each text before it is tokenised.
        text_field: In lines of JSON, the key of the text.
        skip_errors: Whether documents that cannot be read are left out.

    Raises:
        RequestError: Two of them contradict each other, or the name cannot be one.
    """

    n_ctx: int = 2048
    name: str = "data"
    files_per: int = 100_000
    packing: str = STREAM
    separator: int | None = None
    overlap: bool = False
    minimum_size: int = 100
    original_processes: int = 1
    cleaning: Cleaning = field(default_factory=Cleaning)
    text_field: str = "text"
    skip_errors: bool = False

    def __post_init__(self) -> None:
        if not self.name or self.name.startswith(".") or set(self.name) & set("/\\*?[]"):
            raise RequestError(f"{self.name!r} cannot be the beginning of the files' names")
        if self.overlap and self.packing != STREAM:
            raise RequestError("records can overlap only where documents are one stream")
        if self.original_processes != 1 and self.packing != ORIGINAL:
            raise RequestError("a number of the original's processes has a meaning with the original's rules alone")

    def packer(self, separator: int) -> Packer:
        """What makes records of documents."""
        if self.packing == ORIGINAL:
            return OriginalRules(self.n_ctx + 1, separator, self.minimum_size)
        if self.packing == DOCUMENTS:
            return WholeDocuments()
        return Stream(self.n_ctx + 1, separator, self.overlap)


@dataclass
class Totals:
    """What has been made.

    Args:
        documents: Documents that were read.
        skipped: Documents that could not be read, and were left out.
        first_error: Why the first of these could not be read.
        tokens: The documents' tokens, without separators.
        records: Records that were written.
        lost: Tokens and separators that are in no record; see Packer.
    """

    documents: int = 0
    skipped: int = 0
    first_error: str = ""
    tokens: int = 0
    records: int = 0
    lost: int = 0
