"""A verifier under what no client sends: mutated, dripping, idle, from strangers. Who behaves is served."""

from __future__ import annotations

import copy
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from gpuprover.errors import Timeout
from gpuprover.messages import AccessDenied, ConnectionLost
from gpuprover.verifier import client
from gpuprover.verifier.address import connect, parse_address
from gpuprover.verifier.client import VerifierClient
from gpuprover.verifier.server import Limits
from tests.verifier.test_process import (
    DIGESTS,
    PROOF,
    PUBLIC,
    VECTORS,
    VKEYS,
    WAIT,
    WRONG,
    Raw,
    serving,
    started,
    until,
)

KEY = ("--vkey", f"key={VECTORS / 'chain5.bn254.vkey.json'}")
ODD: list[Any] = [
    *(None, True, 0, -1, 1.5, 1e300, 10**399, "", "x", "\ud800", "9" * 500, "0x" + "f" * 300, [], {}, [[]]),
    *([0] * 100, {"a": {"a": []}}, "key", PUBLIC, PROOF, DIGESTS["bn254"], VKEYS["bn254"], [[PUBLIC, PROOF]]),
]
BASES: list[dict[str, Any]] = [
    {"op": "hello"},
    {"op": "status"},
    {"op": "unload", "name": "own"},
    {"op": "authenticate", "nonce": "00" * 32, "proof": "00" * 32},
    {"op": "load", "name": "own", "digest": DIGESTS["bn254"], "verification_key": VKEYS["bn254"]},
    {"op": "verify", "name": "key", "public": WRONG, "proof": PROOF},
    {"op": "verify", "digest": DIGESTS["bn254"], "public": WRONG, "proof": PROOF},
    {"op": "verify_batch", "name": "key", "statements": [[WRONG, PROOF], [WRONG, {}]]},
]


def mutate(random: random.Random, value: Any) -> Any:
    """The value with one part of it replaced, left out or doubled."""
    if isinstance(value, dict) and value and random.random() < 0.8:
        name = random.choice(list(value))
        if random.random() < 0.1:
            del value[name]
        else:
            value[name] = mutate(random, value[name])
        return value
    if isinstance(value, list) and value and random.random() < 0.8:
        i = random.randrange(len(value))
        if random.random() < 0.1:
            value.insert(i, value[i])
        else:
            value[i] = mutate(random, value[i])
        return value
    return copy.deepcopy(random.choice(ODD))


def fuzz(random: random.Random, address: str, count: int) -> dict[str, int]:
    """Sends mutated messages -> how often each kind of answer came."""
    kinds: dict[str, int] = {}
    raw, sent = Raw(address), 0
    while sent < count:
        sent += 1
        document = mutate(random, {"id": sent, **copy.deepcopy(random.choice(BASES))})
        body = bytearray(json.dumps(document).encode())
        broken = random.random() < 0.2
        if broken:
            for _ in range(random.randint(1, 3)):
                body[random.randrange(len(body))] = random.randrange(256)
        length = len(body) if random.random() < 0.97 else random.randrange(1, 1 << 32)
        raw.channel.send_frame(length.to_bytes(4, "little") + bytes(body))
        try:
            if length == len(body):
                answer = raw.answer()
                kind = answer["error"]["kind"] if "error" in answer else "result"
                assert kind != "ProofGenerationFailed", (document, answer)
                # A mutation may put the right signals in the place of the wrong ones.
                told = answer.get("result", {}).get("valid", False)
                if told is True or (isinstance(told, list) and any(told)):
                    assert json.dumps(PUBLIC).encode() in body, document
                kinds[kind] = kinds.get(kind, 0) + 1
            if length != len(body) or kind in ("BrokenMessage", "AccessDenied"):
                raise ConnectionLost("this one has ended")
        except ConnectionLost:
            kinds["ended"] = kinds.get("ended", 0) + 1
            raw.channel.close()
            raw = Raw(address)
    raw.channel.close()
    return kinds


@contextmanager
def folder() -> Iterator[Path]:
    """Whose path is short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="gv") as name:
        yield Path(name)


def whole(address: str, threads: int) -> None:
    """Says that a verifier does all that it did at first."""
    raw = Raw(address)
    assert raw.call("verify", name="key", public=PUBLIC, proof=PROOF)["result"] == {"valid": True}
    batch = raw.call("verify_batch", name="key", statements=[[PUBLIC, PROOF], [WRONG, PROOF]] * 50)
    assert batch["result"]["valid"] == [True, False] * 50
    until(lambda: not raw.call("status")["result"]["running"], "it does not come to rest")
    status = raw.call("status")["result"]
    assert (status["threads"], status["missing_threads"]) == (threads, 0)
    assert (status["counters"]["thread_faults"], status["counters"]["faults"]) == (0, 0)
    assert (status["waiting"], status["running"], status["buffered"]) == (0, 0, 0)
    raw.channel.close()


def test_some_mutated_messages(rng: random.Random) -> None:
    with folder() as path, serving(path, Limits(threads=2), key=VKEYS["bn254"]) as (address, _):
        kinds = fuzz(rng, address, 300)
        assert {"result", "InvalidInput", "MalformedFile", "ended"} <= set(kinds)
        whole(address, 2)


@pytest.mark.slow
def test_many_mutated_messages(rng: random.Random) -> None:
    with folder() as path, started("--socket", path / "v.sock", *KEY, "--threads", "2") as (process, _):
        address = str(path / "v.sock")
        seeds = [rng.getrandbits(64) for _ in range(3)]
        failures: list[BaseException] = []

        def one(seed: int) -> None:
            try:
                fuzz(random.Random(seed), address, 4000)
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=one, args=(seed,)) for seed in seeds]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        whole(address, 2)
        with VerifierClient(address) as caller:
            peak = caller.status().memory["peak"]
            assert peak is not None
            assert peak < 300e6
        process.terminate()
        assert process.wait(WAIT) == 0
        said = process.stderr.read().splitlines()
        assert [line for line in said if "gamma is not 1" not in line] == []


@pytest.mark.slow
def test_drips_and_idlers_delay_nobody(rng: random.Random) -> None:
    """Over TCP, for half a minute: 150 idle connections that come again, and 60 that drip long messages."""
    with started("--listen", "127.0.0.1:0", *KEY, "--threads", "2") as (process, announced):
        address = announced["listening"][0]
        stop = threading.Event()

        def idle() -> None:
            held: list[socket.socket] = []
            while not stop.is_set():
                with suppress(ConnectionLost, OSError):
                    held.append(connect(parse_address(address), WAIT))
                if len(held) > 150:
                    held.pop(0).close()
                time.sleep(0.005)
            for one in held:
                one.close()

        def drip(seed: int) -> None:
            chance = random.Random(seed)
            while not stop.is_set():
                with suppress(ConnectionLost, OSError):
                    one = connect(parse_address(address), WAIT)
                    one.settimeout(1.0)
                    one.sendall(
                        (32 << 20).to_bytes(4, "little") + b" " * chance.choice([1, 100_000, 400_000])
                    )
                    while not stop.is_set():
                        one.sendall(b" ")
                        time.sleep(0.5)

        attackers = [threading.Thread(target=idle)]
        attackers += [threading.Thread(target=drip, args=(rng.getrandbits(64),)) for _ in range(60)]
        for attacker in attackers:
            attacker.start()
        slowest = 0.0
        try:
            with VerifierClient(address) as caller:
                end = time.monotonic() + 30
                while time.monotonic() < end:
                    begun = time.monotonic()
                    assert caller.verify("key", PUBLIC, PROOF, timeout=WAIT)
                    assert caller.verify_batch("key", [(PUBLIC, PROOF)] * 140, timeout=WAIT) == [True] * 140
                    slowest = max(slowest, time.monotonic() - begun)
        finally:
            stop.set()
            for attacker in attackers:
                attacker.join()
        print(f"slowest answer: {slowest:.2f} s")
        assert slowest < 30
        whole(address, 2)
        begun = time.monotonic()
        process.terminate()
        assert process.wait(WAIT) == 0
        assert time.monotonic() - begun < 25


FAKE = """
import json, os, socket, struct, sys
os.setgid(3000)
os.setuid(3000)
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
os.chmod(sys.argv[1], 0o777)
listener.listen()
print("ready", flush=True)
while True:
    one, _ = listener.accept()
    while len(head := one.recv(4)) == 4:
        request = json.loads(one.recv(struct.unpack("<I", head)[0], socket.MSG_WAITALL))
        result = {"hello": {"protocol": 1, "pid": 1, "ready": True}, "verify": {"valid": True}}[request["op"]]
        body = json.dumps({"id": request["id"], "result": result}).encode()
        one.sendall(struct.pack("<I", len(body)) + body)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="a process of another user needs root")
def test_another_users_verifier_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "FIRST_DELAY", 0.01)
    with folder() as path:
        path.chmod(0o1777)
        fake = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", FAKE, str(path / "v.sock")],
            stdout=subprocess.PIPE,
        )
        try:
            assert fake.stdout is not None
            assert fake.stdout.readline() == b"ready\n"
            with (
                VerifierClient(str(path / "v.sock")) as caller,
                pytest.raises(AccessDenied, match="user 3000"),
            ):
                caller.verify("key", WRONG, PROOF)
            with VerifierClient(str(path / "v.sock"), users=[3000]) as caller:
                assert caller.verify("key", WRONG, PROOF), "who trusts that user believes it"
        finally:
            fake.kill()
            fake.wait()


@pytest.mark.slow
def test_the_end_comes_whatever_is_parsed() -> None:
    """Long bodies of many names are being parsed when SIGTERM comes."""
    with started("--listen", "127.0.0.1:0", *KEY, "--grace-period", "3") as (process, announced):
        body = b"{" + b",".join(b'"%d":0' % i for i in range(60_000)) + b',"z":0,"z":1}'
        held = [connect(parse_address(announced["listening"][0]), WAIT) for _ in range(8)]
        for one in held:
            one.sendall(len(body).to_bytes(4, "little") + body)
        raw = Raw(announced["listening"][0])
        with suppress(Timeout):
            assert raw.call("verify", name="key", public=PUBLIC, proof=PROOF)["result"]["valid"]
        begun = time.monotonic()
        process.terminate()
        assert process.wait(WAIT) == 0
        assert time.monotonic() - begun < 20
        for one in held:
            one.close()
        raw.channel.close()
