"""Frames between processes: whole, in pieces, damaged, hostile, from many threads, with descriptors."""

from __future__ import annotations

import json
import os
import random
import socket
import struct
import threading
import time
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from gpuprover.errors import InvalidInput, Timeout
from gpuprover.messages import MAX_FRAME, PIECE, BrokenMessage, Channel, ConnectionLost, encode

Pair = tuple[socket.socket, Channel]
WAIT = 20.0
"""Seconds after which a test would rather fail; nothing here takes so long."""


@pytest.fixture(params=["unix", "tcp"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """A plain socket, and the channel at its other end."""
    if request.param == "unix":
        ours, theirs = socket.socketpair()
    else:
        with socket.create_server(("127.0.0.1", 0)) as server:
            ours = socket.create_connection(server.getsockname())
            theirs, _ = server.accept()
    channel = Channel(theirs)
    yield ours, channel
    ours.close()
    channel.close()


@pytest.fixture
def channels() -> Iterator[tuple[Channel, Channel]]:
    ours, theirs = (Channel(end, max_fds=4) for end in socket.socketpair())
    yield ours, theirs
    ours.close()
    theirs.close()


def frame(body: bytes, size: int | None = None) -> bytes:
    return struct.pack("<I", len(body) if size is None else size) + body


def open_descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


DOCUMENTS: list[dict[str, Any]] = [
    {},
    {"op": "hello"},
    {"text": 'ζ\u0000\ud800\n"', "numbers": [0, -1, 1 << 1200, 0.5, 1e300], "flags": [True, False, None]},
    {"deep": json.loads("[" * 200 + "]" * 200)},
    {"long": "x" * (3 * PIECE + 1)},
]


def test_what_is_sent_is_received(pair: Pair) -> None:
    ours, channel = pair
    sender = Channel(ours)
    for document in DOCUMENTS:
        sent = threading.Thread(target=sender.send, args=(document,))
        sent.start()
        assert channel.receive(WAIT) == (document, [])
        sent.join()
    sender.close()
    with pytest.raises(ConnectionLost):
        channel.receive(WAIT)


def test_messages_in_single_bytes(pair: Pair) -> None:
    """A receive that runs out of time keeps what has come."""
    ours, channel = pair
    for byte in frame(b'{"a": 1}')[:-1]:
        ours.sendall(bytes([byte]))
        with pytest.raises(Timeout):
            channel.receive(0.001)
    ours.sendall(b"}" + frame(b'{"b": 2}') + frame(b'{"c": 3}'))
    assert [channel.receive(WAIT)[0] for _ in range(3)] == [{"a": 1}, {"b": 2}, {"c": 3}]


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"", "0 bytes announced"),
        (b" ", "empty"),
        (b"pickle", "not JSON"),
        (b"[]", "expected a JSON object"),
        (b'"text"', "expected a JSON object"),
        (b'{"a": 1} {}', "not JSON"),
        (b'{"a": 1, "a": 2}', "twice"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": -Infinity}', "Infinity is not JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "5000 digits"),
        (b'{"a": -' + b"9" * 401 + b"}", "digits"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b"\xed\xa0\x80", "not UTF-8"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b'{"a":' * 300 + b"1" + b"}" * 300, "nested too deeply"),
        (b"\x00" * 10, "not JSON"),
    ],
)
def test_what_is_no_message_is_refused(pair: Pair, body: bytes, problem: str) -> None:
    ours, channel = pair
    ours.sendall(frame(body) + frame(b"{}"))
    for _ in range(2):  # what comes after it is not looked at
        with pytest.raises(BrokenMessage, match=problem):
            channel.receive(WAIT)
    channel.send({"error": problem})  # the other direction still is
    assert ours.recv(4)


@pytest.mark.parametrize("size", [MAX_FRAME + 1, 1 << 31, (1 << 32) - 1])
def test_lengths_beyond_the_limit_are_refused(pair: Pair, size: int) -> None:
    ours, channel = pair
    ours.sendall(frame(b"{}", size))
    with pytest.raises(BrokenMessage, match=f"{size} bytes announced"):
        channel.receive(WAIT)


def test_lengths_take_no_memory_before_the_bytes_come(pair: Pair) -> None:
    ours, channel = pair
    ours.sendall(frame(b"{", MAX_FRAME))
    tracemalloc.start()
    try:
        with pytest.raises(Timeout):
            channel.receive(0.2)
        assert tracemalloc.get_traced_memory()[1] < 4 * PIECE
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("count", [1, 3, 4, 5, 10])
def test_the_end_within_a_message(pair: Pair, count: int) -> None:
    ours, channel = pair
    ours.sendall(frame(b'{"op": "hello"}')[:count])
    ours.close()
    with pytest.raises(ConnectionLost, match="within a message"):
        channel.receive(WAIT)


def test_random_bytes_never_hang(rng: random.Random) -> None:
    """Whatever comes, mutated messages among it, ends in a message or in a typed error."""
    good = frame(b'{"op": "verify", "public": ["1", "2"], "proof": {"pi_a": [1, 2, 3]}}')
    refused = 0
    for _ in range(300):
        data = bytearray(good if rng.random() < 0.7 else rng.randbytes(rng.randrange(60)))
        for _ in range(rng.randrange(4)):
            if data:
                data[rng.randrange(len(data))] = rng.randrange(256)
        ours, theirs = socket.socketpair()
        channel = Channel(theirs, limit=1 << 16)
        ours.sendall(data)
        ours.close()
        with pytest.raises((BrokenMessage, ConnectionLost)) as ended:
            while True:
                channel.receive(WAIT)
        refused += ended.type is BrokenMessage
        channel.close()
    assert refused > 20


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        ({"a": float("nan")}, "not finite"),
        ({"a": [float("inf")]}, "not finite"),
        ({"a": 10**5000}, "bits"),
        ({"a": b"bytes"}, "type bytes"),
        ({1: "a"}, "no text"),
        ({"a": {1, 2}}, "type set"),
        ({"a": "x" * MAX_FRAME}, "expected at most"),
    ],
)
def test_what_cannot_be_received_is_not_sent(document: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidInput, match=problem):
        encode(document)


def test_documents_within_themselves_are_not_sent() -> None:
    document: dict[str, Any] = {}
    document["a"] = document
    with pytest.raises(InvalidInput, match="nested"):
        encode(document)


def test_many_threads_send(channels: tuple[Channel, Channel]) -> None:
    """Messages longer than the socket's buffer arrive whole, whatever other threads send meanwhile."""
    ours, theirs = channels
    with ThreadPoolExecutor(8) as pool:
        for i in range(40):
            pool.submit(ours.send, {"i": i, "filling": str(i % 10) * 300_000}, timeout=WAIT)
        received = [theirs.receive(WAIT)[0] for _ in range(40)]
    assert sorted(document["i"] for document in received) == list(range(40))
    assert all(document["filling"] == str(document["i"] % 10) * 300_000 for document in received)


def test_nobody_receives(channels: tuple[Channel, Channel]) -> None:
    ours, theirs = channels
    with pytest.raises(Timeout, match="not taken"):
        ours.send({"a": "x" * (8 << 20)}, timeout=0.1)
    with pytest.raises(ConnectionLost):  # the stream ended within a message
        ours.send({})
    with pytest.raises(ConnectionLost, match="within a message"):
        theirs.receive(WAIT)
    theirs.close()
    with pytest.raises(ConnectionLost):
        ours.send({})


def test_closing_wakes_whoever_waits(channels: tuple[Channel, Channel]) -> None:
    ours, theirs = channels
    with ThreadPoolExecutor(2) as pool:
        receiving = pool.submit(theirs.receive)
        sending = pool.submit(theirs.send, {"a": "x" * (8 << 20)})
        time.sleep(0.1)
        theirs.close()
        for waiting in (receiving, sending):
            with pytest.raises(ConnectionLost):
                waiting.result(WAIT)
    theirs.close()
    assert theirs.closed
    with pytest.raises(ConnectionLost):
        ours.receive(WAIT)


def test_descriptors_travel_with_their_message(channels: tuple[Channel, Channel]) -> None:
    ours, theirs = channels
    before = open_descriptors()
    for text in (b"first", b"second" * PIECE):
        with os.fdopen(os.memfd_create("test"), "w+b") as file:
            file.write(text)
            file.flush()
            with ThreadPoolExecutor(1) as pool:
                sent = pool.submit(ours.send, {"long": "x" * len(text)}, [file.fileno(), file.fileno()])
                document, descriptors = theirs.receive(WAIT)
                sent.result(WAIT)
        assert (document["long"], len(descriptors)) == ("x" * len(text), 2)
        for descriptor in descriptors:
            assert not os.get_inheritable(descriptor)
            assert os.pread(descriptor, len(text) + 1, 0) == text
            os.close(descriptor)
    ours.send({"none": 1})
    assert theirs.receive(WAIT) == ({"none": 1}, [])
    assert open_descriptors() == before


@pytest.mark.parametrize("allowed", [0, 2])
def test_descriptors_that_nobody_expects_are_refused_and_closed(allowed: int) -> None:
    before = open_descriptors()
    first, second = socket.socketpair()
    ours, theirs = Channel(first), Channel(second, max_fds=allowed)
    with open(os.devnull) as file:
        ours.send({}, [file.fileno()] * 9)
    with pytest.raises(BrokenMessage, match="descriptors"):
        theirs.receive(WAIT)
    ours.close()
    theirs.close()
    assert open_descriptors() == before


def test_descriptors_of_a_refused_message_are_closed(channels: tuple[Channel, Channel]) -> None:
    ours, theirs = channels
    before = open_descriptors()
    with open(os.devnull) as file:
        ours.send_frame(frame(b"[]"), [file.fileno()])
    with pytest.raises(BrokenMessage):
        theirs.receive(WAIT)
    assert open_descriptors() == before


def test_descriptors_need_a_unix_socket() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        channel = Channel(socket.create_connection(server.getsockname()))
        with pytest.raises(InvalidInput, match="Unix socket"):
            channel.send({}, [0])
        channel.close()
