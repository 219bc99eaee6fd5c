"""Running the app: its socket, its log, and its end, which lets running requests finish."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import time
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from neo_tf.errors import RequestError

from .header_timeout import TimedHeaders
from .serving import Serving

_BACKLOG = 2048  # connections that may wait to be accepted
_FLUSH_SECONDS = 5  # for answers on their way, once the engine is closed


def bind(host: str, port: int) -> socket.socket:
    """A socket that is bound to an address, and does not listen yet.

    Raises:
        RequestError: The address is in use, or is none of this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError):
        raise RequestError(f"--host {host}: no address of this name is known") from None
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        # Of two servers that are bound, only one may listen: this one must know now whether another does.
        bound.listen(_BACKLOG)
    except OSError as error:
        bound.close()
        raise RequestError(f"cannot listen at {host} port {port}: {error.strerror or error}") from None
    return bound


def is_public(bound: socket.socket) -> bool:
    """Whether other machines can reach a socket."""
    return not ipaddress.ip_address(bound.getsockname()[0].partition("%")[0]).is_loopback


def address_of(bound: socket.socket) -> str:
    """The address for a browser."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class DrainingServer(uvicorn.Server):
    """A uvicorn server that goes on answering while it ends.

    The first SIGTERM or Ctrl-C lets running requests finish; new ones are answered with 503. At the timeout, or at a
    second signal, what still runs is cut, and its clients are told.

    Args:
        app: The app.
        serving: The model behind it.
        shutdown_timeout: Seconds for running requests.
        when_ready: Called once, when requests are answered.
    """

    def __init__(
        self,
        app: ASGIApp,
        serving: Serving,
        shutdown_timeout: float = 30,
        when_ready: Callable[[], None] | None = None,
    ) -> None:
        config = uvicorn.Config(
            app,
            log_config=None,  # the caller sets up logging
            access_log=False,  # the app writes its own
            server_header=False,
            http=TimedHeaders,
            ws="none",
            backlog=_BACKLOG,
            timeout_graceful_shutdown=_FLUSH_SECONDS,
        )
        super().__init__(config)
        self._serving = serving
        self._shutdown_timeout = shutdown_timeout
        self._when_ready = when_ready
        self._deadline: float | None = None

    def drain(self) -> None:
        """Begins to end; called again, it cuts what still runs. It may be called from any thread."""
        self._serving.admission.draining = True
        self._deadline = time.monotonic() + (self._shutdown_timeout if self._deadline is None else 0)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Takes a signal."""
        self.drain()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begins to answer."""
        await super().startup(sockets)
        if self._when_ready:
            self._when_ready()

    async def on_tick(self, counter: int) -> bool:
        """Looks ten times a second whether the end has come."""
        is_idle = self._serving.admission.active == 0 and not self.server_state.tasks  # answers are on their way
        if self._deadline is not None and (is_idle or time.monotonic() >= self._deadline):
            await asyncio.to_thread(self._serving.close)
            return True
        return await super().on_tick(counter)

    @contextlib.contextmanager
    def running(self, bound: socket.socket) -> Iterator[None]:
        """Runs the server in a thread of its own while the block runs: for tests and notebooks."""
        import threading

        thread = threading.Thread(target=self.run, args=([bound],), name="neo-tf server")
        thread.start()
        try:
            while not self.started and thread.is_alive():
                time.sleep(0.01)
            yield
        finally:
            self.drain()
            thread.join()
