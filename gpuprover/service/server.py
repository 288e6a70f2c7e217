"""Listens, serves, and on SIGTERM drains: what runs is finished, what has ended can still be fetched."""

from __future__ import annotations

import asyncio
import gc
import logging
import resource
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import Any, cast

import uvicorn

from gpuprover.config import ServiceSettings
from gpuprover.engine import Prover
from gpuprover.errors import EXIT_CANCELLED, EXIT_OK, InvalidInput, ProverError, code_location
from gpuprover.service.app import create_app
from gpuprover.service.connections import Connection, Connections
from gpuprover.service.core import Service

log = logging.getLogger("gpuprover.service")

BACKLOG = 4096
"""Connections that wait to be accepted; the system may allow fewer."""
DESCRIPTORS = 65536
"""Open files that are asked for: one for each client."""
LINGER_SECONDS = 5.0
"""Seconds after the last proof of a service that drains, for clients that poll to fetch it."""
SHUTDOWN_SECONDS = 5
POLL_SECONDS = 0.05
SWITCH_SECONDS = 0.001
"""Seconds for which a thread that reads a body may hold the interpreter while the event loop waits for it:
several times for each request, since every call of the system lets it go."""
COLLECT_SECONDS = 60.0


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens, or will once it is served.

    Raises:
        InvalidInput: the address cannot be had.
    """
    shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "not a name of a host"
        raise InvalidInput(f"{shown}: cannot listen: {reason}") from None
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise InvalidInput(f"{shown}: cannot listen: {error.strerror}") from None
    return listener


def url_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(
    prover: Prover,
    settings: ServiceSettings,
    listener: socket.socket,
    *,
    started: Callable[[], Any] = lambda: None,
) -> int:
    """Serves until SIGTERM or SIGINT, and drains: proofs that run or wait have the prover's ``grace_period``
    to end. A second signal ends it at once. The prover is closed at the end.

    Only for the main thread.

    Returns:
        the exit code.

    Raises:
        InvalidInput: the file of tokens cannot be used.
    """
    _allow_descriptors()
    sys.setswitchinterval(SWITCH_SECONDS)
    app = create_app(prover, settings)
    service: Service = app.state.service
    if not service.local and not service.tokens.required:
        log.warning("%s is open to the network, and no token is needed: set tokens_file", url_of(listener))

    attached = sys.stderr.isatty()

    async def main() -> int:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(_log_place)
        stop, force = asyncio.Event(), asyncio.Event()

        def signalled() -> None:
            (force if stop.is_set() else stop).set()

        def hung_up() -> None:
            if attached:  # the terminal is gone, and with it whoever started this
                signalled()
            else:
                log.info("SIGHUP: keys and tokens are read anew by themselves; SIGTERM ends the service")

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, signalled)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            loop.add_signal_handler(signal.SIGHUP, hung_up)
        async with running(app, listener) as server:
            started()
            collecting = asyncio.create_task(_collect(service))
            stopping, ended = asyncio.create_task(stop.wait()), server.ended
            await asyncio.wait({stopping, ended}, return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            collecting.cancel()
            await drain(service, force)
        return EXIT_CANCELLED if force.is_set() else EXIT_OK

    return asyncio.run(main())


async def _collect(service: Service) -> None:
    """Collects garbage while nobody's JSON is there: each of its lists would be looked at while all waits."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 1 << 20)
    while True:
        await asyncio.sleep(COLLECT_SECONDS)
        if not service.busy_reading:
            gc.collect()


async def drain(service: Service, force: asyncio.Event) -> None:
    """Refuses new proofs, ends those that there are, and lets clients fetch them; ``force`` cuts it short."""
    service.draining = True
    grace = service.prover.settings.grace_period
    left = service.results.open
    log.info("draining: %d proofs are open, %.0f s at most", len(left), grace)
    forced = asyncio.create_task(force.wait())
    # In threads that no other call may keep busy.
    drained = asyncio.create_task(asyncio.to_thread(service.prover.drain, grace))
    await asyncio.wait({forced, drained}, return_when=asyncio.FIRST_COMPLETED)
    await asyncio.to_thread(service.prover.close, 0.0)
    loop = asyncio.get_running_loop()
    end = loop.time() + LINGER_SECONDS
    while not force.is_set() and loop.time() < end and not all(record.fetched for record in left):
        await asyncio.sleep(POLL_SECONDS)
    forced.cancel()
    done = sum(record.state.value == "succeeded" for record in left)
    log.info("drained: %d of %d proofs were made", done, len(left))


class _Server(uvicorn.Server):
    """Leaves signals to us: a proof is not dropped because the process is asked to end. And accepting: where
    the system has no descriptor left, asyncio tries 4,096 times at once, and logs each of them."""

    ended: asyncio.Task[None]

    def __init__(self, config: uvicorn.Config, connections: Connections) -> None:
        super().__init__(config)
        self._connections = connections
        self._tasks: list[asyncio.Task[None]] = []

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        (listener,) = sockets or []
        await super().startup(sockets=[])
        make = partial(
            Connection,
            connections=self._connections,
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )
        listener.setblocking(False)
        listener.listen(self.config.backlog)
        accepting = self._connections.accept(listener, make)
        self._tasks = [asyncio.create_task(accepting), asyncio.create_task(self._connections.watch())]

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        accepting, watching = self._tasks
        accepting.cancel()
        await asyncio.wait([accepting])
        await super().shutdown(sockets)
        watching.cancel()
        await asyncio.wait([watching])


@asynccontextmanager
async def running(app: Any, listener: socket.socket) -> AsyncIterator[_Server]:
    """The app, served until the end of the block."""
    service: Service = app.state.service
    settings = service.settings
    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=cast(int, settings.keep_alive),  # any number of seconds
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    connections = Connections(settings.connection_limit, settings.head_timeout, service.pace)
    server = _Server(config, connections)
    server.ended = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        while not server.started and not server.ended.done():
            await asyncio.sleep(0.01)
        yield server
    finally:
        server.should_exit = True
        await server.ended


def _allow_descriptors() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _log_place(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What no task catches: kind and place, not the text, which may hold values of a witness."""
    error = context.get("exception")
    if isinstance(error, ProverError):
        log.error("%s: %s", error.kind, error.message)
    elif error is not None:
        log.error(
            "%s in %s; this is a bug in gpuprover", type(error).__name__, code_location(error.__traceback__)
        )
    else:
        log.error("%s", context.get("message", "an error without a message"))
