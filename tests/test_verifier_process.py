"""The verifier's process: proofs through it, its end and its return, its limits, and who may ask it what."""

from __future__ import annotations

import copy
import itertools
import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

import gpuprover
from gpuprover import processes
from gpuprover.errors import (
    CircuitNotFound,
    DeviceError,
    InvalidInput,
    MalformedFile,
    ProverError,
    QueueFull,
    ShuttingDown,
    Timeout,
)
from gpuprover.formats.groth16_json import digest, parse_verification_key
from gpuprover.formats.key_warnings import OWN_GAMMA
from gpuprover.messages import Channel, ConnectionLost
from gpuprover.verifier import client, server
from gpuprover.verifier.address import Listener, connect, parse_address, tcp_address, unix_address
from gpuprover.verifier.client import PART, WINDOW, VerifierClient
from gpuprover.verifier.keys import LoadedKey
from gpuprover.verifier.process import VerifierProcess
from gpuprover.verifier.server import Limits, Server

VECTORS = Path(__file__).parent / "vectors"
WAIT = 60.0
"""Seconds after which a test would rather fail; nothing here takes so long."""


def document(name: str) -> Any:
    return json.loads((VECTORS / f"{name}.json").read_text())


CURVES = ("bn254", "bls12-381")
VKEYS = {name: document(f"chain5.{name}.vkey") for name in CURVES}
PROOFS = {name: (document(f"chain5.{name}.public"), document(f"chain5.{name}.proof")) for name in CURVES}
DIGESTS = {name: digest(parse_verification_key(vkey)) for name, vkey in VKEYS.items()}
PUBLIC, PROOF = PROOFS["bn254"]
WRONG = [str(int(PUBLIC[0]) + 1), *PUBLIC[1:]]


@pytest.fixture(scope="module")
def shared() -> Iterator[VerifierProcess]:
    """A verifier for the tests that leave it as it is."""
    with VerifierProcess(keys=VKEYS, threads=2) as verifier:
        assert isinstance(verifier, VerifierProcess)
        yield verifier


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose path is short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="gv") as name:
        yield Path(name)


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def state(pid: int) -> str:
    """A process's state as /proc has it; Z, too, for one that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "Z"


def gone(pid: int) -> bool:
    """Whether no process of this number runs; one that nobody waited for counts as gone."""
    return state(pid) == "Z"


class Raw:
    """A client that sends what it likes."""

    def __init__(self, address: str) -> None:
        self.channel = Channel(connect(parse_address(address), WAIT))
        self.numbers = itertools.count()

    def send(self, op: object, **fields: Any) -> int:
        number = next(self.numbers)
        self.channel.send({"id": number, "op": op, **fields}, timeout=WAIT)
        return number

    def answer(self) -> dict[str, Any]:
        return self.channel.receive(WAIT)[0]

    def call(self, op: object, **fields: Any) -> dict[str, Any]:
        number = self.send(op, **fields)
        answer = self.answer()
        assert answer["id"] == number
        return answer

    def kind(self, op: object, **fields: Any) -> str:
        kind: str = self.call(op, **fields)["error"]["kind"]
        return kind

    def load(self, name: str, vkey: str) -> dict[str, Any]:
        return self.call("load", name=name, verification_key=VKEYS[vkey], digest=DIGESTS[vkey])


@contextmanager
def serving(folder: Path, limits: Limits | None = None, **keys: Any) -> Iterator[tuple[str, Server]]:
    """A server in this process, on a Unix socket."""
    listener = Listener(unix_address(str(folder / "verifier.sock")))
    served = Server(limits or Limits())
    served.listen(listener)
    for name, vkey in keys.items():
        served.load(name, vkey, name)
    thread = threading.Thread(target=served.run)
    thread.start()
    try:
        yield str(listener.address), served
    finally:
        served.stop()
        thread.join(WAIT)
        assert not thread.is_alive()


@contextmanager
def started(*arguments: object, command: tuple[str, ...] = ("-m", "gpuprover.verifier")) -> Iterator[Any]:
    """A verifier's process with what it announced."""
    process = subprocess.Popen(
        [sys.executable, *command, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.stderr and process.stderr.read()
        yield process, json.loads(line)
    finally:
        process.kill()
        process.communicate(timeout=WAIT)


# Answers -------------------------------------------------------------------------------------------


def test_proofs_right_and_wrong(shared: VerifierProcess) -> None:
    for name, (public, proof) in PROOFS.items():
        assert shared.verify(name, public, proof)
        assert shared.verify(name, tuple(int(x) for x in public), proof)
        assert not shared.verify(name, [str(int(public[0]) + 1), *public[1:]], proof)
        assert not shared.verify(name, public, {**proof, "pi_a": proof["pi_c"]})
    status = shared.status()
    assert (status.state, status.restarts, set(status.keys)) == ("ready", 0, set(CURVES))
    described = {"digest": DIGESTS["bn254"], "curve": "bn254", "public": 2, "warnings": [OWN_GAMMA]}
    assert status.as_dict()["keys"]["bn254"] == described
    assert status.counters["valid"] >= 4
    assert status.counters["verified"] == status.counters["valid"] + status.counters["invalid"]
    assert all(status.memory[name] for name in ("private", "pss", "rss", "peak"))


def test_proofs_of_other_tools(shared: VerifierProcess, data_dir: Path) -> None:
    """With 1 to 256 public signals, twice: by then, multiples of the key's points are kept."""
    for name in ("multiplier2", "sha256_1"):
        stem = data_dir / "groth16" / name
        public, proof = (
            json.loads(Path(f"{stem}.{part}.json").read_text()) for part in ("public", "r7s11.proof")
        )
        shared.load(name, json.loads(Path(f"{stem}.groth16.vkey.json").read_text()))
        wrong = [*public[:-1], str(int(public[-1]) + 1)]
        for _ in range(2):
            assert shared.verify(name, public, proof)
            assert not shared.verify(name, wrong, proof)
        assert shared.verify_batch(name, [(public, proof), (wrong, proof)] * 3) == [True, False] * 3
        shared.unload(name)
        with pytest.raises(CircuitNotFound, match=name):
            shared.verify(name, public, proof)


@pytest.mark.parametrize(
    ("public", "proof"),
    [
        (PUBLIC[:1], PROOF),
        ([*PUBLIC, "1"], PROOF),
        ("public.json", PROOF),
        (PUBLIC, str(VECTORS / "chain5.bn254.proof.json")),
        (PUBLIC, []),
        (PUBLIC, {}),
        (PUBLIC, {**PROOF, "pi_a": ["1", "3", "1"]}),
        (PUBLIC, {**PROOF, "pi_b": None}),
        (PUBLIC, {**PROOF, "protocol": "plonk"}),
        (PUBLIC, PROOFS["bls12-381"][1]),
        ([str(1 << 254), "1"], PROOF),
        ([10**390, "1"], PROOF),
        (["9" * 5000, "1"], PROOF),
        ([None, "\ud800"], PROOF),
    ],
)
def test_damaged_documents_fail_as_in_one_process(shared: VerifierProcess, public: Any, proof: Any) -> None:
    """By the same error in the same words, but for paths, which nobody reads for a client."""
    with pytest.raises(ProverError) as told:
        shared.verify("bn254", public, proof)
    if isinstance(proof, str) or isinstance(public, str):
        assert told.type is MalformedFile
        return
    with pytest.raises(ProverError) as known:
        gpuprover.verify(VKEYS["bn254"], public, proof)
    assert (told.type, str(told.value)) == (known.type, str(known.value))


@pytest.mark.parametrize("public", [[float("nan"), 1], [10**5000, 1], [b"1", 1], {1}])
def test_what_json_cannot_say_is_damaged_too(shared: VerifierProcess, public: Any) -> None:
    with pytest.raises(MalformedFile):
        shared.verify("bn254", public, PROOF)
    assert shared.verify_batch("bn254", [(public, PROOF), (PUBLIC, PROOF)]) == [False, True]


def test_batches_are_answered_in_order(shared: VerifierProcess) -> None:
    damaged: list[Any] = [
        (PUBLIC, {}),
        ([], PROOF),
        (PUBLIC, object()),
        PROOFS["bls12-381"],
        (PUBLIC, {**PROOF, "note": "x" * client.PART_BYTES}),
    ]
    statements = [(PUBLIC, PROOF)] * (2 * PART)
    statements[7] = statements[PART] = WRONG, PROOF
    for i, statement in enumerate(damaged):
        statements[100 * i + 3] = statement
    wanted = [statement == (PUBLIC, PROOF) for statement in statements]
    # Fields that nobody asked for do no harm, however long.
    wanted[403] = True
    assert shared.verify_batch("bn254", statements) == wanted
    assert shared.verify_batch("bn254", []) == []


def test_streams_hold_few_statements(shared: VerifierProcess) -> None:
    taken = 0

    def endless() -> Iterator[Any]:
        nonlocal taken
        while True:
            taken += 1
            yield PUBLIC, PROOF

    results = shared.verify_stream("bn254", endless())
    assert list(itertools.islice(results, 3 * PART)) == [True] * (3 * PART)
    results.close()
    assert taken <= (3 + WINDOW) * PART
    assert not shared._calls


def test_many_threads_call(shared: VerifierProcess) -> None:
    def one(i: int) -> bool:
        name = CURVES[i % 2]
        public, proof = PROOFS[name]
        return shared.verify(name, public if i % 3 else [str(int(public[0]) + 1), *public[1:]], proof)

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(one, range(120))) == [i % 3 != 0 for i in range(120)]


# Keys and their digests --------------------------------------------------------------------------------


def test_digests_are_compared(shared: VerifierProcess) -> None:
    assert shared.load("again", VKEYS["bn254"], DIGESTS["bn254"]) == DIGESTS["bn254"]
    assert shared.load("again", parse_verification_key(VKEYS["bn254"])) == DIGESTS["bn254"]
    shared.unload("again")
    for vkey in (VKEYS["bls12-381"], {**VKEYS["bn254"], "vk_alpha_1": VKEYS["bn254"]["IC"][0]}):
        with pytest.raises(MalformedFile, match="digest"):
            shared.load("again", vkey, DIGESTS["bn254"])
    with pytest.raises(CircuitNotFound):
        shared.verify("again", PUBLIC, PROOF)
    with pytest.raises(CircuitNotFound):
        shared.unload("again")


def test_a_key_with_points_outside_the_subgroup(shared: VerifierProcess) -> None:
    """The verifier finds it, not the client; both then know nothing of the key, and an older one stays."""
    vkey = copy.deepcopy(VKEYS["bls12-381"])
    # (0, 2) is on y² = x³ + 4, and of order 3.
    vkey["IC"][1] = ["0", "2", "1"]
    with pytest.raises(MalformedFile, match=r"IC\[1\].*subgroup"):
        shared.load("bad", vkey)
    with pytest.raises(CircuitNotFound):
        shared.verify("bad", *PROOFS["bls12-381"])
    with pytest.raises(MalformedFile, match="subgroup"):
        shared.load("bls12-381", vkey)
    assert shared.verify("bls12-381", *PROOFS["bls12-381"])


def test_names_belong_to_a_connection(folder: Path) -> None:
    with serving(folder, known=VKEYS["bn254"]) as (address, _):
        one, other = Raw(address), Raw(address)
        public, proof = PROOFS["bls12-381"]
        # The client lies about the digest, and gets nothing under this name.
        lie = one.call("load", name="key", verification_key=VKEYS["bn254"], digest=DIGESTS["bls12-381"])
        assert lie["error"]["kind"] == "MalformedFile"
        assert "digest" in lie["error"]["message"]
        assert one.load("key", "bls12-381")["result"] == {
            "digest": DIGESTS["bls12-381"],
            "warnings": [OWN_GAMMA],
        }
        # Nobody else's name, nor one that the server was started with, means another key by that.
        assert one.load("known", "bls12-381")["result"]
        assert other.kind("verify", name="key", public=public, proof=proof) == "CircuitNotFound"
        assert other.call("verify", name="known", public=PUBLIC, proof=PROOF)["result"] == {"valid": True}
        assert one.call("verify", name="known", public=public, proof=proof)["result"] == {"valid": True}
        # A digest means the same to all.
        by_digest = other.call("verify", digest=DIGESTS["bls12-381"], public=public, proof=proof)
        assert by_digest["result"] == {"valid": True}
        assert other.kind("unload", name="known") == "CircuitNotFound"
        assert one.call("unload", name="known")["result"] == {"unloaded": "known"}
        assert one.call("verify", name="known", public=PUBLIC, proof=PROOF)["result"] == {"valid": True}
        one.channel.close()
        until(
            lambda: "error" in other.call("verify", digest=DIGESTS["bls12-381"], public=public, proof=proof),
            "a key outlives its client",
        )
        other.channel.close()


# Death and return -----------------------------------------------------------------------------------------


def test_killed_in_the_middle_of_calls() -> None:
    """Again and again: every call is answered, and rightly."""
    statements = [(PUBLIC, PROOF)] * 800
    statements[5] = WRONG, PROOF
    wanted = [i != 5 for i in range(800)]
    stop = threading.Event()

    def singles(wrong: bool) -> int:
        count = 0
        while not stop.is_set():
            assert verifier.verify("bn254", WRONG if wrong else PUBLIC, PROOF) is not wrong
            count += 1
        return count

    def batches() -> int:
        count = 0
        while not stop.is_set():
            assert verifier.verify_batch("bn254", statements) == wanted
            count += 1
        return count

    def ready(restarts: int) -> bool:
        status = verifier.status()
        return status.state == "ready" and status.restarts == restarts

    pids: set[int] = set()
    with (
        VerifierProcess(keys={"bn254": VKEYS["bn254"]}, threads=2) as verifier,
        ThreadPoolExecutor(4) as pool,
    ):
        calls = [pool.submit(singles, i == 1) for i in range(3)] + [pool.submit(batches)]
        try:
            for restarts in range(3):
                until(lambda restarts=restarts: ready(restarts), "the verifier does not come back")
                time.sleep(0.2)
                pid = verifier.status().pid
                assert pid is not None
                pids.add(pid)
                os.kill(pid, signal.SIGKILL)
            assert verifier.verify("bn254", PUBLIC, PROOF)
        finally:
            stop.set()
        assert all(call.result(WAIT) > 0 for call in calls)
        assert len(pids) == 3
        assert all(gone(pid) for pid in pids)
        assert verifier.status().restarts == 3


def test_one_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "PING_SECONDS", 0.1)
    with VerifierProcess(keys={"bn254": VKEYS["bn254"]}, threads=1) as verifier:
        assert verifier.wait_ready(WAIT)
        pid = verifier.status().pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        until(lambda: state(pid) == "T", "the process does not stop")
        with pytest.raises(Timeout, match=r"within 0\.3 s"):
            verifier.verify("bn254", PUBLIC, PROOF, timeout=0.3)
        assert not gone(pid)
        monkeypatch.setattr(client, "SILENCE_SECONDS", 0.5)
        assert verifier.verify("bn254", PUBLIC, PROOF)
        assert gone(pid)
        assert verifier.status().restarts == 1


def test_one_that_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Callers are told why, in time; a later one, when it starts again, knows nothing of it."""
    monkeypatch.setattr(client, "FIRST_DELAY", 0.01)
    spawn = processes.spawn

    def missing(module: str, *arguments: str, **options: Any) -> Any:
        return spawn("gpuprover.no_such_module", *arguments, **options)

    with VerifierProcess("lazy", {"bn254": VKEYS["bn254"]}) as verifier:
        monkeypatch.setattr(processes, "spawn", missing)
        with pytest.raises(ConnectionLost, match=r"ended with status 1.*no_such_module"):
            verifier.verify("bn254", PUBLIC, PROOF)
        monkeypatch.setattr(processes, "spawn", spawn)
        assert verifier.verify("bn254", PUBLIC, PROOF)


def test_lazy_starts_no_process_before_it_is_needed() -> None:
    threads, descriptors = threading.active_count(), os.listdir("/proc/self/fd")
    verifier = VerifierProcess("lazy", {"bn254": VECTORS / "chain5.bn254.vkey.json"})
    assert verifier.load("other", VKEYS["bls12-381"], DIGESTS["bls12-381"]) == DIGESTS["bls12-381"]
    with pytest.raises(CircuitNotFound):
        verifier.verify("unknown", PUBLIC, PROOF)
    assert (verifier.status().state, verifier.status().pid) == ("idle", None)
    assert verifier.verify("bn254", PUBLIC, PROOF)
    pid = verifier.status().pid
    assert pid is not None
    assert set(verifier.status().keys) == {"bn254", "other"}
    verifier.close()
    verifier.close()
    assert gone(pid)
    assert verifier.status().state == "closed"
    with pytest.raises(ShuttingDown):
        verifier.verify("bn254", PUBLIC, PROOF)
    assert threading.active_count() == threads
    assert os.listdir("/proc/self/fd") == descriptors
    with pytest.raises(InvalidInput, match="eager or lazy"):
        VerifierProcess("often")


def test_closing_tells_those_who_wait() -> None:
    verifier = VerifierProcess(keys={"bn254": VKEYS["bn254"]}, threads=1)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(verifier.verify_batch, "bn254", ((PUBLIC, PROOF) for _ in itertools.count()))
        until(lambda: verifier.status().counters.get("verified"), "nothing is verified")
        verifier.close()
        with pytest.raises(ShuttingDown):
            waiting.result(WAIT)


SCRIPT = """
import json, sys
from gpuprover.verifier.process import VerifierProcess
verifier = VerifierProcess(keys={{"key": {vkey!r}}}, threads=1)
public, proof = json.load(open({public!r})), json.load(open({proof!r}))
print(verifier.verify("key", public, proof), verifier.status().pid, flush=True)
{end}
"""


KILLED = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"


@pytest.mark.parametrize(("from_stdin", "end"), [(False, ""), (True, ""), (False, KILLED)])
def test_scripts_without_a_guard(folder: Path, from_stdin: bool, end: str) -> None:
    """The verifier imports no caller's ``__main__``, and ends with its process, however that ends."""
    names = {part: str(VECTORS / f"chain5.bn254.{part}.json") for part in ("vkey", "public", "proof")}
    script = SCRIPT.format(end=end, **names)
    (folder / "script.py").write_text(script)
    ran = subprocess.run(
        # The library warns of this key, which is of an insecure set-up.
        [sys.executable, "-W", "ignore::UserWarning", "-" if from_stdin else str(folder / "script.py")],
        input=script if from_stdin else "",
        capture_output=True,
        text=True,
        timeout=WAIT,
    )
    assert ran.returncode == (-signal.SIGKILL if end else 0), ran.stderr
    assert ran.stderr == ""
    valid, pid = ran.stdout.split()
    assert valid == "True"
    until(lambda: gone(int(pid)), "the verifier outlives its owner")


# The server's limits --------------------------------------------------------------------------------------


class Gate:
    """In place of a verification: one that lasts until it is let through."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.entered, self.open = threading.Semaphore(0), threading.Event()
        monkeypatch.setattr(LoadedKey, "verify", self)

    def __call__(self, public: object, proof: object) -> bool:
        self.entered.release()
        assert self.open.wait(WAIT)
        return True


def test_requests_beyond_the_queue_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    with serving(folder, Limits(threads=1, waiting=2), key=VKEYS["bn254"]) as (address, _):
        one, other = Raw(address), Raw(address)
        first = one.send("verify", name="key", public=PUBLIC, proof=PROOF)
        assert gate.entered.acquire(timeout=WAIT)
        waiting = [one.send("verify", name="key", public=PUBLIC, proof=PROOF) for _ in range(2)]
        until(lambda: other.call("status")["result"]["waiting"] == 2, "nothing waits")
        assert other.kind("verify", name="key", public=PUBLIC, proof=PROOF) == "QueueFull"
        assert other.call("status")["result"]["counters"]["refused"] == 1
        gate.open.set()
        assert [one.answer() for _ in range(3)] == [
            {"id": i, "result": {"valid": True}} for i in (first, *waiting)
        ]
        assert other.call("verify", name="key", public=PUBLIC, proof=PROOF)["result"]["valid"]
        one.channel.close()
        other.channel.close()


def test_one_client_takes_no_more_than_its_share(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    with serving(folder, Limits(threads=1, waiting=10, outstanding=3), key=VKEYS["bn254"]) as (address, _):
        greedy, other = Raw(address), Raw(address)
        for _ in range(20):
            greedy.send("verify", name="key", public=PUBLIC, proof=PROOF)
        until(lambda: other.call("status")["result"]["waiting"] == 2, "nothing waits")
        number = other.send("verify", name="key", public=PUBLIC, proof=PROOF)
        gate.open.set()
        assert other.answer() == {"id": number, "result": {"valid": True}}
        assert [greedy.answer()["id"] for _ in range(20)] == list(range(20))
        greedy.channel.close()
        other.channel.close()


def test_bytes_that_wait_are_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long messages are read one after the other; short ones, and status, get through meanwhile."""
    gate = Gate(monkeypatch)
    limits = Limits(threads=1, buffered=1 << 20)
    with serving(folder, limits, key=VKEYS["bn254"]) as (address, _), ThreadPoolExecutor(6) as pool:
        long = {**PROOF, "filling": "x" * 600_000}
        clients = [Raw(address) for _ in range(6)]
        calls = [pool.submit(c.call, "verify", name="key", public=PUBLIC, proof=long) for c in clients]
        assert gate.entered.acquire(timeout=WAIT)
        asking = Raw(address)
        for _ in range(20):
            status = asking.call("status")["result"]
            assert 600_000 < status["buffered"] <= 1 << 20
            assert status["waiting"] + status["running"] == 1
            time.sleep(0.005)
        gate.open.set()
        assert all(call.result(WAIT)["result"]["valid"] for call in calls)
        assert asking.call("status")["result"]["buffered"] == 0
        for c in (*clients, asking):
            c.channel.close()


def test_connections_beyond_the_limit_are_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(folder, Limits(connections=2), key=VKEYS["bn254"]) as (address, _):
        clients = [Raw(address) for _ in range(2)]
        for c in clients:
            assert c.call("hello")["result"]["ready"]
        late = Raw(address)
        assert late.answer()["error"]["kind"] == "QueueFull"
        monkeypatch.setattr(client, "FIRST_DELAY", 0.01)
        with VerifierClient(address) as caller, pytest.raises(QueueFull, match="2 connections"):
            caller.verify("key", PUBLIC, PROOF)
        clients.pop().channel.close()
        with VerifierClient(address) as caller:
            assert caller.verify("key", PUBLIC, PROOF)
        clients.pop().channel.close()
        late.channel.close()


def test_bytes_of_keys_are_bounded(folder: Path) -> None:
    with serving(folder, Limits(keys=3 * server.SMALL_MESSAGE)) as (address, _):
        raw = Raw(address)
        answers = [raw.load(f"key{i}", "bn254") for i in range(5)]
        assert [answer.get("error", {}).get("kind") for answer in answers] == [None] * 3 + ["QueueFull"] * 2
        assert raw.call("unload", name="key0")["result"]
        assert raw.load("key3", "bn254")["result"]
        raw.channel.close()


def test_clients_that_stop_are_dropped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of a message, or taking no answers; others are served all the while."""
    monkeypatch.setattr(server, "STALL_SECONDS", 0.2)
    with serving(folder, Limits(threads=1), key=VKEYS["bn254"]) as (address, _):
        idle = Raw(address)
        stalled = connect(parse_address(address), WAIT)
        stalled.sendall((1 << 20).to_bytes(4, "little") + b'{"id": 1')
        assert stalled.recv(1) == b""  # dropped
        stalled.close()
        deaf = connect(parse_address(address), WAIT)
        deaf.settimeout(WAIT)
        ask = b'{"id":1,"op":"status"}'
        with suppress(OSError):
            while True:
                deaf.sendall(len(ask).to_bytes(4, "little") + ask)
        until(lambda: idle.call("status")["result"]["connections"] == 1, "a deaf client stays")
        deaf.close()
        assert idle.call("verify", name="key", public=PUBLIC, proof=PROOF)["result"]["valid"]
        idle.channel.close()


@pytest.mark.parametrize(
    ("sent", "kind"),
    [
        (b'{"id": 1, "op": "hello"}'[:-1], "BrokenMessage"),
        (b"[]", "BrokenMessage"),
        (b"\x80\x04K\x01.", "BrokenMessage"),
        (b'{"id": 1}', "InvalidInput"),
        (b'{"id": 1, "op": ["hello"]}', "InvalidInput"),
        (b'{"op": "hello"}', "InvalidInput"),
        (b'{"id": "x", "op": "hello"}', "InvalidInput"),
        (b'{"id": 1, "op": "verify"}', "InvalidInput"),
        (b'{"id": 1, "op": "verify", "name": "none"}', "CircuitNotFound"),
        (b'{"id": 1, "op": "verify", "digest": {}}', "CircuitNotFound"),
        (b'{"id": 1, "op": "verify", "name": "key"}', "MalformedFile"),
        (b'{"id": 1, "op": "verify_batch", "name": "key", "statements": 3}', "MalformedFile"),
        (b'{"id": 1, "op": "load", "name": "key"}', "InvalidInput"),
        (b'{"id": 1, "op": "load", "name": "", "digest": ""}', "InvalidInput"),
        (b'{"id": 1, "op": "load", "name": "k", "digest": "", "verification_key": 3}', "MalformedFile"),
        (b'{"id": 1, "op": "unload", "name": "key"}', "CircuitNotFound"),
    ],
)
def test_requests_that_are_none(folder: Path, sent: bytes, kind: str) -> None:
    with serving(folder, key=VKEYS["bn254"]) as (address, _):
        raw = Raw(address)
        raw.channel.send_frame(len(sent).to_bytes(4, "little") + sent)
        assert raw.answer()["error"]["kind"] == kind
        if kind != "BrokenMessage":
            batch = raw.call(
                "verify_batch", name="key", statements=[[PUBLIC, PROOF], [], 3, [1, 2], [1, 2, 3]]
            )
            assert batch["result"]["valid"] == [True] + [False] * 4
        raw.channel.close()


def test_what_waits_is_answered_before_the_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    with serving(folder, Limits(threads=1), key=VKEYS["bn254"]) as (address, served):
        raw, other = Raw(address), Raw(address)
        numbers = [raw.send("verify", name="key", public=PUBLIC, proof=PROOF) for _ in range(3)]
        assert gate.entered.acquire(timeout=WAIT)
        until(lambda: other.call("status")["result"]["waiting"] == 2, "nothing waits")
        served.stop()
        until(lambda: not other.call("hello")["result"]["ready"], "the server does not stop")
        assert other.kind("verify", name="key", public=PUBLIC, proof=PROOF) == "ShuttingDown"
        with pytest.raises(ConnectionLost):
            connect(parse_address(address), WAIT)
        gate.open.set()
        assert [raw.answer()["id"] for _ in numbers] == numbers
        with pytest.raises(ConnectionLost):
            raw.answer()
        raw.channel.close()
        other.channel.close()


# Addresses -----------------------------------------------------------------------------------------------


def test_unix_sockets_are_their_users_alone(folder: Path) -> None:
    path = folder / "made" / "verifier.sock"
    listener = Listener(unix_address(str(path)))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    with pytest.raises(InvalidInput, match="another process listens"):
        Listener(unix_address(str(path)))
    # A process that died leaves its socket behind, and the next one takes its place.
    listener.socket.close()
    second = Listener(unix_address(str(path)))
    listener.close()  # the path is no longer its own
    assert path.exists()
    second.close()
    assert not path.exists()
    path.write_text("a file")
    with pytest.raises(InvalidInput, match="no socket"):
        Listener(unix_address(str(path)))
    assert path.read_text() == "a file"
    path.parent.chmod(0o777)
    with pytest.raises(InvalidInput, match="others may write"):
        Listener(unix_address(str(path.parent / "other.sock")))
    with pytest.raises(DeviceError, match="cannot listen"):
        Listener(unix_address("/proc/none/verifier.sock"))


@pytest.mark.parametrize(
    "text", ["", "x" * 200 + "/y", "localhost", "localhost:", ":80", "::1:80", "h:70000", "h:x"]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(InvalidInput):
        VerifierClient(text)


def test_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "FIRST_DELAY", 0.01)
    assert str(tcp_address("[::1]:80")) == "[::1]:80"
    assert str(tcp_address("127.0.0.1:0")) == "127.0.0.1:0"
    with VerifierClient("127.0.0.1:1") as nobody, pytest.raises(ConnectionLost, match="no verifier answers"):
        nobody.verify("key", PUBLIC, PROOF)


def test_a_server_with_many_clients(folder: Path) -> None:
    """From its start to SIGTERM: a key from a file, both kinds of address, who may end it."""
    path, file = folder / "verifier.sock", VECTORS / "chain5.bn254.vkey.json"
    arguments = ("--socket", path, "--listen", "127.0.0.1:0", "--vkey", f"key={file}", "--threads", "2")
    with started(*arguments) as (process, announced):
        assert announced["keys"] == {"key": DIGESTS["bn254"]}
        assert announced["pid"] == process.pid
        assert announced["listening"][0] == str(path)
        addresses = announced["listening"]
        with ThreadPoolExecutor(12) as pool:

            def one(i: int) -> bool:
                with VerifierClient(addresses[i % 2]) as caller:
                    own = f"own{i}"
                    caller.load(own, VKEYS["bls12-381"], DIGESTS["bls12-381"])
                    return caller.verify("key", PUBLIC, PROOF) and caller.verify(own, *PROOFS["bls12-381"])

            assert all(pool.map(one, range(24)))
        remote = Raw(addresses[1])
        assert remote.kind("shutdown") == "InvalidInput"
        with VerifierClient(str(path)) as caller:
            until(lambda: caller.status().connections == 2, "connections stay")
            assert caller.status().pid == process.pid
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT) == 0
        assert json.loads(process.stderr.read()) == {"warning": f"{file}: {OWN_GAMMA}"}
        assert not path.exists()
        remote.channel.close()


def test_a_client_whose_server_is_replaced(folder: Path) -> None:
    """The connection is renewed at the next call, with the keys that were loaded over the one before."""
    with serving(folder) as (address, _):
        caller = VerifierClient(address)
        caller.load("key", VKEYS["bn254"])
        assert caller.verify("key", PUBLIC, PROOF)
        assert Raw(address).call("shutdown")["result"] == {}
        until(lambda: not Path(address).exists(), "the server stays")
    with serving(folder):
        assert caller.verify("key", PUBLIC, PROOF)
        assert caller.status().restarts >= 1
        caller.close()


def test_the_command(folder: Path) -> None:
    path, file = folder / "verifier.sock", VECTORS / "chain5.bls12-381.vkey.json"
    arguments = ("verifier", "--socket", path, "--vkey", f"key={file}", "--json")
    with started(*arguments, command=("-m", "gpuprover")) as (process, announced):
        assert announced["listening"] == [str(path)]
        with VerifierClient(str(path)) as caller:
            assert caller.verify("key", *PROOFS["bls12-381"])
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT) == 0


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([], "expected --socket"),
        (["--vkey", "key"], "--socket"),
        (["--socket", "/tmp/gv.sock", "--vkey", "key"], "NAME=FILE"),
        (["--socket", "/tmp/gv.sock", "--vkey", "key=/none.json"], "none.json"),
        (["--listen", "nowhere"], "HOST:PORT"),
    ],
)
def test_arguments_that_cannot_be_used(run: Any, arguments: list[str], problem: str) -> None:
    ran = run("verifier", *arguments)
    assert ran.code == 2
    assert problem in ran.err
    alone = subprocess.run(
        [sys.executable, "-m", "gpuprover.verifier", *arguments], capture_output=True, text=True, timeout=WAIT
    )
    assert alone.returncode == 2
    assert problem in alone.stderr
    assert len(alone.stderr.splitlines()) == 1


# Memory --------------------------------------------------------------------------------------------------

LISTING = (
    "import json, sys; from gpuprover.verifier.__main__ import main; "
    "code = main(sys.argv[1:]); print(json.dumps(sorted(sys.modules))); sys.exit(code)"
)


def test_memory_and_modules_after_a_thousand_verifications(folder: Path) -> None:
    path, file = folder / "verifier.sock", VECTORS / "chain5.bn254.vkey.json"
    arguments = ("--socket", path, "--vkey", f"key={file}", "--threads", "1")
    with started(*arguments, command=("-c", LISTING)) as (process, _):
        with VerifierClient(str(path)) as caller:
            assert caller.verify("key", PUBLIC, PROOF)
            before = caller.status().memory["private"]
            for i in range(1000):
                assert caller.verify("key", WRONG if i % 10 == 0 else PUBLIC, PROOF) is (i % 10 != 0)
            status = caller.status()
            after = status.memory["private"]
        assert status.counters["verified"] == 1001
        assert before is not None
        assert after is not None
        assert after < 200e6
        assert after - before < 10e6
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=WAIT)
        assert (process.returncode, err) == (0, json.dumps({"warning": f"{file}: {OWN_GAMMA}"}) + "\n")
        loaded = set(json.loads(out))
    forbidden = ("cupy", "wasmtime", "rich", "gpuprover.cuda", "gpuprover.formats.zkey", "gpuprover.cli")
    forbidden += ("gpuprover.api", "gpuprover.witness", "gpuprover.scheduler", "gpuprover.groth16.prover")
    assert not [m for m in loaded if any(m == name or m.startswith(name + ".") for name in forbidden)]


def test_a_flood_of_batches_stays_within_bounds(folder: Path) -> None:
    """Many clients with more than fits: each is answered rightly, and the process stays small."""
    path, file = folder / "verifier.sock", VECTORS / "chain5.bn254.vkey.json"
    arguments = ("--socket", path, "--vkey", f"key={file}", "--threads", "2")
    # A megabyte each of proofs that are damaged, which takes little time to find.
    damaged = [PUBLIC, {**PROOF, "pi_b": [["1"] * 8] * 100}]
    statements = [damaged] * 250 + [[PUBLIC, PROOF], [WRONG, PROOF]]
    wanted = [False] * 250 + [True, False]
    with started(*arguments), VerifierClient(str(path)) as observer:
        assert observer.verify_batch("key", [(PUBLIC, PROOF)] * PART) == [True] * PART
        before = observer.status().memory["peak"]
        assert before is not None

        def flood(_: int) -> list[str]:
            raw = Raw(str(path))
            # Without waiting for an answer in between.
            sent = [raw.send("verify_batch", name="key", statements=statements) for _ in range(6)]
            kinds = []
            for _ in sent:
                answer = raw.answer()
                assert "error" in answer or answer["result"]["valid"] == wanted
                kinds.append(answer.get("error", {}).get("kind", "answered"))
            raw.channel.close()
            return kinds

        with ThreadPoolExecutor(8) as pool:
            floods = [pool.submit(flood, i) for i in range(8)]
            assert observer.verify("key", PUBLIC, PROOF)
            kinds = [kind for f in floods for kind in f.result(WAIT)]
        assert len(kinds) == 48
        assert set(kinds) <= {"answered", "QueueFull"}
        status = observer.status()
        peak = status.memory["peak"]
        assert peak is not None
        assert peak - before < 120e6
        assert status.buffered == 0
