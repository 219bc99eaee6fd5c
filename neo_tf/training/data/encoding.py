"""Texts to token ids, in this process or in several."""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from neo_tf.errors import DataError, NeoTFError, first_line
from neo_tf.training.data.cleaning import Cleaning
from neo_tf.training.data.text_batches import Batch

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_WAITING = 3  # batches for each process that are on their way


@dataclass(frozen=True)
class HowToEncode:
    """What a process must know to tokenise.

    Args:
        tokenizer: The text of a tokenizer.json.
        cleaning: What is done to each text before.
        split_special_tokens: Whether a special token that stands in a text is tokenised like any other letters, as
            tokenizer_config.json can say. By default it becomes that token.
    """

    tokenizer: str
    cleaning: Cleaning
    split_special_tokens: bool = False


class TextEncoder:
    """Cleans and tokenises texts."""

    def __init__(self, how: HowToEncode) -> None:
        from tokenizers import Tokenizer

        self._tokenizer: Tokenizer = Tokenizer.from_str(how.tokenizer)
        self._tokenizer.encode_special_tokens = how.split_special_tokens
        self._clean: Callable[[str], str] = how.cleaning.function()

    def __call__(self, texts: list[str]) -> list[npt.NDArray[np.int64]]:
        """The token ids of each text, int64 [n], without tokens that the tokenizer would put around it.

        Raises:
            DataError: The tokenizer cannot encode one of them.
        """
        cleaned = [self._clean(text) for text in texts]
        try:
            encoded = self._tokenizer.encode_batch_fast(cleaned, add_special_tokens=False)
        except Exception as error:  # tokenizers raises plain Exception
            raise DataError(f"the tokenizer cannot encode a text: {first_line(error)}") from None
        return [np.asarray(one.ids, np.int64) for one in encoded]


def encode(
    batches: Iterable[Batch], how: HowToEncode, processes: int
) -> Iterator[tuple[Batch, list[npt.NDArray[np.int64]]]]:
    """Tokenises batches of texts; they come back in their order, whatever the number of processes is.

    Args:
        batches: The batches. They are read a little ahead.
        how: How they are tokenised.
        processes: With 1, this process does it.

    Raises:
        NeoTFError: A process has ended.
    """
    if processes == 1:
        encoder = TextEncoder(how)
        for batch in batches:
            yield batch, encoder(batch.texts)
        return
    import multiprocessing
    from concurrent.futures import Future, ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    how.cleaning.function()  # a missing library is said here, in one line
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), initializer=_begin, initargs=(how,))
    running: deque[tuple[Batch, Future[list[npt.NDArray[np.int64]]]]] = deque()
    try:
        for batch in batches:
            running.append((batch, pool.submit(_encode, batch.texts)))
            if len(running) > _WAITING * processes:
                first, done = running.popleft()
                yield first, done.result()
        while running:
            first, done = running.popleft()
            yield first, done.result()
    except BrokenProcessPool:
        raise NeoTFError(
            "a process that tokenises was ended, perhaps for want of memory: the same command goes on where this one "
            "stopped, and --processes 1 needs the least memory"
        ) from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


_encoder: TextEncoder | None = None  # of a process that tokenises


def _begin(how: HowToEncode) -> None:
    """Prepares a process: it leaves Ctrl-C to its parent, uses one core, and ends with its parent."""
    global _encoder
    import multiprocessing

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    parent = multiprocessing.parent_process()
    if parent is not None:

        def end_with_parent() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=end_with_parent, daemon=True).start()
    _encoder = TextEncoder(how)


def _encode(texts: list[str]) -> list[npt.NDArray[np.int64]]:
    assert _encoder is not None
    return _encoder(texts)
