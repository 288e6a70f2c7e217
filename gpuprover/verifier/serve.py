"""A verifier from its arguments: sockets, keys, then the server."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

from gpuprover import processes
from gpuprover.devices import use_images
from gpuprover.errors import DeviceError, InvalidInput
from gpuprover.verifier.address import Listener, stays_here, tcp_address, unix_address
from gpuprover.verifier.secret import read_secret

if TYPE_CHECKING:
    from gpuprover.verifier.connections import Limits

IMAGES_AFTER = 30.0
"""Seconds after which a verifier that had to compile sees to images for the next one."""
IMAGES_SECONDS = 900.0


def _make_images() -> None:
    """Has the images that are missing made, by a process of the lowest priority."""
    time.sleep(IMAGES_AFTER)
    with suppress(DeviceError):
        child = processes.spawn("gpuprover.cpu.bake", "--parent", str(os.getpid()))
        if not child.wait(IMAGES_SECONDS):
            child.kill()
            child.wait(IMAGES_SECONDS)
        child.close()


def _print(record: dict[str, Any]) -> None:
    print(json.dumps(record), flush=True)


def _warn(message: str) -> None:
    print(json.dumps({"warning": message}), file=sys.stderr, flush=True)


def serve(
    sockets: Sequence[str],
    addresses: Sequence[str],
    keys: Sequence[str],
    *,
    limits: Limits,
    secret_file: str | None = None,
    insecure: bool = False,
    users: Sequence[int] = (),
    descriptor: int | None = None,
    announce: Callable[[dict[str, Any]], None] = _print,
    warn: Callable[[str], None] = _warn,
) -> int:
    """Runs a verifier in the main thread until SIGTERM or the like; returns the exit code, 0.

    Args:
        sockets: paths of Unix sockets.
        addresses: ``HOST:PORT``.
        keys: ``NAME=FILE``, verification keys as snarkjs writes them.
        limits: what it holds for its clients.
        secret_file: the file of the secret that clients over TCP have to share.
        insecure: other machines may reach the addresses without one.
        users: ids of users who may connect to the Unix sockets, besides this one and root.
        descriptor: a connected socket to whoever started this process.
        announce: called with ``{"ready", "pid", "listening", "keys"}`` once clients can connect.
        warn: called with a sentence about a key that proofs can be forged for, or about addresses that other
            machines reach without a secret.

    Raises:
        InvalidInput: nothing to listen on; an argument or a file cannot be used.
        MalformedFile, UnsupportedFile: a key is damaged.
        DeviceError: the system refuses an address.
    """
    from gpuprover.formats.json_files import read_json
    from gpuprover.verifier.server import Server

    in_use = use_images()
    places = [*map(unix_address, sockets), *map(tcp_address, addresses)]
    if not places and descriptor is None:
        raise InvalidInput("verifier: expected --socket PATH or --listen HOST:PORT")
    secret = None if secret_file is None else read_secret(secret_file)
    if insecure and secret is not None:
        raise InvalidInput("--insecure: expected without --secret-file")
    server = Server(limits, secret=secret)
    for text in keys:
        name, equals, path = text.partition("=")
        if not equals or not name or not path:
            raise InvalidInput(f"--vkey: expected NAME=FILE, found {text[:60]!r}")
        for warning in server.load(name, read_json(path), path).warnings:
            warn(f"{path}: {warning}")
    if descriptor is not None:
        try:
            server.own(socket.socket(fileno=descriptor))
        except OSError as error:
            raise InvalidInput(f"--fd {descriptor}: no socket: {error.strerror or error}") from None
    with ExitStack() as stack:
        listening = []
        for place in places:
            listener = Listener(place, users=users, anywhere=insecure or secret is not None)
            stack.callback(listener.close)
            server.listen(listener)
            listening.append(str(listener.address))
        if not in_use:
            threading.Thread(target=_make_images, name="images", daemon=True).start()
        record = {"ready": True, "pid": os.getpid(), "listening": listening, "keys": server.digests()}
        open_to_all = [str(place) for place in places if not stays_here(place)] if insecure else []
        if open_to_all:
            warn(
                f"INSECURE: {', '.join(open_to_all)}: other machines reach it and no secret is asked for: "
                "whoever is on the way can change answers"
            )
        return server.run(lambda: announce(record))
