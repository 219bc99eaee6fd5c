"""Hidden states for the routes: computed text by text in a thread beside the engine's, for all clients in turn."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from neo_tf.errors import CheckpointError

from .call import disconnected
from .errors import ClientGoneError, ServerError, shutting_down

if TYPE_CHECKING:
    from starlette.types import Receive

    from ..device.encoder import Encoder
    from .admission import Admission


class Embedder:
    """An Encoder in a thread of its own. It is loaded when the first text comes.

    The thread takes one text of each client in turn, so that a long list keeps nobody waiting.

    Args:
        load: Makes the encoder.
        admission: What counts the requests: each takes one place, as its texts are computed one by one.
    """

    def __init__(self, load: Callable[[], Encoder], admission: Admission) -> None:
        self._load = load
        self._admission = admission
        self._encoder: Encoder | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="neo-tf embeddings")

    async def embed(
        self, texts: Sequence[Sequence[int]], pool: Callable[[np.ndarray], np.ndarray], receive: Receive
    ) -> list[np.ndarray]:
        """What `pool` makes of the hidden states of each text.

        A client that disconnects gives its place back at once, and at most one more of its texts is computed.

        Args:
            texts: The token ids of each text, checked.
            pool: Makes a vector of a text's hidden states, float32 [n, embd]; it runs in the thread.
            receive: What the client's disconnection comes from.

        Raises:
            ClientGoneError: The client has disconnected.
            ServerError: The request is not taken in, the folder has no hidden states, or the server ends.
            NeoTFError: The encoder fails.
        """
        self._admission.take(1)
        computing = asyncio.create_task(self._all(texts, pool))
        watching = asyncio.create_task(disconnected(receive))
        try:
            await asyncio.wait((computing, watching), return_when=asyncio.FIRST_COMPLETED)
            if not computing.done():
                raise ClientGoneError
            if computing.cancelled():  # by close
                raise shutting_down()
            return computing.result()
        finally:
            computing.cancel()
            watching.cancel()
            self._admission.give(1)

    def close(self) -> None:
        """Ends the thread, after the text that it computes. Clients that wait for others are told so."""
        self._thread.shutdown(cancel_futures=True)

    async def _all(self, texts: Sequence[Sequence[int]], pool: Callable[[np.ndarray], np.ndarray]) -> list[np.ndarray]:
        vectors = []
        for text in texts:
            try:
                done = self._thread.submit(self._one, text, pool)
            except RuntimeError:  # the thread has been ended
                raise shutting_down() from None
            vectors.append(await asyncio.wrap_future(done))
        return vectors

    def _one(self, text: Sequence[int], pool: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        if self._encoder is None:
            try:
                self._encoder = self._load()
            except CheckpointError as error:
                raise ServerError(501, f"embeddings are not served: {error}", code="not_served") from None
        return pool(self._encoder.hidden_states(text))
