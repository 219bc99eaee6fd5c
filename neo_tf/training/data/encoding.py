"""Texts to token ids, in this process or in several."""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from neo_tf.errors import NeoTFError
from neo_tf.training.data.cleaning import Cleaning
from neo_tf.training.data.text_batches import Batch

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_WAITING = 3  # batches for each process that are on their way


class TextEncoder:
    """Cleans and tokenises texts.

    Args:
        tokenizer: The text of a tokenizer.json.
        cleaning: What is done to each text before.
    """

    def __init__(self, tokenizer: str, cleaning: Cleaning) -> None:
        from tokenizers import Tokenizer

        self._tokenizer: Tokenizer = Tokenizer.from_str(tokenizer)
        self._clean: Callable[[str], str] = cleaning.function()

    def __call__(self, texts: list[str]) -> list[npt.NDArray[np.int64]]:
        """The token ids of each text, int64 [n], without tokens that the tokenizer would put around it."""
        cleaned = [self._clean(text) for text in texts]
        encoded = self._tokenizer.encode_batch_fast(cleaned, add_special_tokens=False)
        return [np.asarray(one.ids, np.int64) for one in encoded]


def encode(
    batches: Iterable[Batch], tokenizer: str, cleaning: Cleaning, processes: int
) -> Iterator[tuple[Batch, list[npt.NDArray[np.int64]]]]:
    """Tokenises batches of texts; they come back in their order, whatever the number of processes is.

    Args:
        batches: The batches. They are read a little ahead.
        tokenizer: The text of a tokenizer.json.
        cleaning: What is done to each text before.
        processes: With 1, this process does it.

    Raises:
        NeoTFError: A process has ended.
    """
    if processes == 1:
        encoder = TextEncoder(tokenizer, cleaning)
        for batch in batches:
            yield batch, encoder(batch.texts)
        return
    import multiprocessing
    from concurrent.futures import Future, ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    cleaning.function()  # a missing library is said here, in one line
    pool = ProcessPoolExecutor(
        processes, multiprocessing.get_context("spawn"), initializer=_begin, initargs=(tokenizer, cleaning)
    )
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


def _begin(tokenizer: str, cleaning: Cleaning) -> None:
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
    _encoder = TextEncoder(tokenizer, cleaning)


def _encode(texts: list[str]) -> list[npt.NDArray[np.int64]]:
    assert _encoder is not None
    return _encoder(texts)
