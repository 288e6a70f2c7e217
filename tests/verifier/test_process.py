"""The verifier's process: proofs through it, its end and its return, its limits, and who may ask it what."""

from __future__ import annotations

import copy
import errno
import hmac
import itertools
import json
import os
import resource
import signal
import socket
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
from gpuprover.messages import AccessDenied, Channel, ConnectionLost
from gpuprover.systems.groth16.documents import parse_verification_key
from gpuprover.systems.groth16.key_warnings import OWN_GAMMA
from gpuprover.verifier import address as addresses
from gpuprover.verifier import client, connections, server
from gpuprover.verifier.address import Listener, connect, parse_address, tcp_address, unix_address
from gpuprover.verifier.client import PART, WINDOW, VerifierClient
from gpuprover.verifier.connections import UNTRUSTED_MESSAGE
from gpuprover.verifier.keys import LoadedKey
from gpuprover.verifier.process import VerifierProcess
from gpuprover.verifier.secret import read_secret
from gpuprover.verifier.server import Limits, Server
from tests.support.paths import VECTORS

WAIT = 60.0
"""Seconds after which a test would rather fail; nothing here takes so long."""


def document(name: str) -> Any:
    return json.loads((VECTORS / f"{name}.json").read_text())


CURVES = ("bn254", "bls12-381")
VKEYS = {name: document(f"chain5.{name}.vkey") for name in CURVES}
PROOFS = {name: (document(f"chain5.{name}.public"), document(f"chain5.{name}.proof")) for name in CURVES}
DIGESTS = {name: parse_verification_key(vkey).digest for name, vkey in VKEYS.items()}
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

    def __init__(self, address: str, users: tuple[int, ...] = ()) -> None:
        self.channel = Channel(connect(parse_address(address), WAIT, users=users))
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
def running(served: Server) -> Iterator[None]:
    """Serves in a thread of this process, from when clients are heard."""
    started = threading.Event()
    thread = threading.Thread(target=served.run, args=(started.set,))
    thread.start()
    try:
        assert started.wait(WAIT)
        yield
    finally:
        served.stop()
        thread.join(WAIT)
        assert not thread.is_alive()


@contextmanager
def serving(
    folder: Path, limits: Limits | None = None, *, users: tuple[int, ...] = (), **keys: Any
) -> Iterator[tuple[str, Server]]:
    """A server in this process, on a Unix socket."""
    listener = Listener(unix_address(str(folder / "verifier.sock")), users=users)
    served = Server(limits or Limits())
    served.listen(listener)
    for name, vkey in keys.items():
        served.load(name, vkey, name)
    with running(served):
        yield str(listener.address), served


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
    described = {
        "digest": DIGESTS["bn254"],
        "protocol": "groth16",
        "curve": "bn254",
        "public": 2,
        "warnings": [OWN_GAMMA],
    }
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


def test_one_that_hangs_is_given_up() -> None:
    """Also while nobody asks it anything."""
    with VerifierProcess(keys={"bn254": VKEYS["bn254"]}, threads=1, heartbeat=4.0) as verifier:
        assert verifier.wait_ready(WAIT)
        pid = verifier.status().pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        until(lambda: state(pid) == "T", "the process does not stop")
        with pytest.raises(Timeout, match=r"within 0\.3 s"):
            verifier.verify("bn254", PUBLIC, PROOF, timeout=0.3)
        assert not gone(pid)
        assert verifier.verify("bn254", PUBLIC, PROOF)
        assert gone(pid)
        assert verifier.status().restarts == 1
        assert verifier.wait_ready(WAIT)
        pid = verifier.status().pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        until(lambda: gone(pid), "nobody notices")
        until(lambda: verifier.status().restarts == 2, "it is not started again")


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
            # Beyond the limit there is one message at most, and the beginnings of others.
            assert 600_000 < status["buffered"] <= (1 << 20) + 602_000 + 6 * server.SMALL_MESSAGE
            assert status["waiting"] + status["running"] == 1
            time.sleep(0.005)
        gate.open.set()
        assert all(call.result(WAIT)["result"]["valid"] for call in calls)
        assert asking.call("status")["result"]["buffered"] == 0
        for c in (*clients, asking):
            c.channel.close()


def test_connections_beyond_the_limit_are_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If those that there are wait for something; idle ones make place."""
    gate = Gate(monkeypatch)
    limits = Limits(threads=1, connections=2)
    with serving(folder, limits, key=VKEYS["bn254"]) as (address, served), ThreadPoolExecutor(2) as pool:
        clients = [Raw(address) for _ in range(2)]
        calls = [pool.submit(c.call, "verify", name="key", public=PUBLIC, proof=PROOF) for c in clients]
        assert gate.entered.acquire(timeout=WAIT)
        until(lambda: served._waiting, "nothing waits")
        late = Raw(address)
        assert late.answer()["error"]["kind"] == "QueueFull"
        monkeypatch.setattr(client, "FIRST_DELAY", 0.01)
        with VerifierClient(address) as caller, pytest.raises(QueueFull, match="2 connections"):
            caller.verify("key", PUBLIC, PROOF)
        gate.open.set()
        assert all(call.result(WAIT)["result"]["valid"] for call in calls)
        with VerifierClient(address) as caller:
            assert caller.verify("key", PUBLIC, PROOF)
            assert caller.status().counters["evicted"] == 1
        for c in (*clients, late):
            c.channel.close()


def test_idle_connections_keep_nobody_out(folder: Path) -> None:
    """However many there are, and although some have begun a message; the one idle for longest goes first."""
    with serving(folder, Limits(connections=8, stall=0.5), key=VKEYS["bn254"]) as (address, _):
        idle = [connect(parse_address(address), WAIT) for _ in range(20)]
        for one in idle[::2]:
            with suppress(OSError):
                one.sendall(b"\x01")
        raw = Raw(address)
        assert raw.call("verify", name="key", public=PUBLIC, proof=PROOF)["result"]["valid"]
        assert raw.call("status")["result"]["counters"]["evicted"] >= 13
        for one in idle:
            one.close()
        raw.channel.close()


@pytest.mark.skipif(sys.platform != "linux", reason="limits another process")
def test_idle_connections_keep_nobody_out_where_descriptors_are_fewer(folder: Path) -> None:
    vkey = folder / "key.json"
    vkey.write_text(json.dumps(VKEYS["bn254"]))
    path = str(folder / "v.sock")
    with started("--socket", path, "--vkey", f"key={vkey}", "--threads", "1") as (process, _):
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (40, 40))
        idle = [connect(parse_address(path), WAIT) for _ in range(60)]
        raw = Raw(path)
        assert raw.call("verify", name="key", public=PUBLIC, proof=PROOF)["result"]["valid"]
        assert raw.call("status")["result"]["counters"]["evicted"] >= 20
        raw.channel.close()
        for one in idle:
            one.close()


def test_those_with_the_most_connections_make_place(folder: Path) -> None:
    """Whatever they do: one peer cannot keep others out by work, either."""
    made = Server(Limits(connections=4))
    pairs = [socket.socketpair() for _ in range(6)]
    held = made._connections
    try:
        for i, (ours, _) in enumerate(pairs[:4]):
            held.connect(ours, local=True, owner=False, peer="greedy" if i else "modest")
        for connection in held._all:
            connection.outstanding = 1
        assert not held._make_place("greedy"), "it gets no place at another's cost"
        assert held._make_place("newcomer")
        assert sorted(c.peer for c in held._all) == ["greedy", "greedy", "modest"]
        assert not held._make_place("newcomer"), "two of three are not the most of four"
    finally:
        held.close()
        for pair in pairs:
            for end in pair:
                end.close()


def test_bytes_of_keys_are_bounded(folder: Path) -> None:
    """For one connection by a quarter of all, for all together; each has its share, whatever others hold."""
    size = server.SMALL_MESSAGE
    with serving(folder, Limits(keys=12 * size, connections=12)) as (address, _):
        clients = [Raw(address) for _ in range(6)]
        raw = clients[0]
        answers = [raw.load(f"key{i}", "bn254") for i in range(5)]
        assert [answer.get("error", {}).get("kind") for answer in answers] == [None] * 3 + ["QueueFull"] * 2
        assert raw.call("unload", name="key0")["result"]
        assert raw.load("key3", "bn254")["result"]
        for other in clients[1:4]:
            assert all("result" in other.load(f"key{i}", "bn254") for i in range(3))
        assert "result" in clients[4].load("key", "bn254"), "its share"
        assert "QueueFull" in str(clients[4].load("another", "bn254"))
        raw.channel.close()
        until(lambda: "result" in clients[5].load("key0", "bn254"), "keys stay after their client")
        until(lambda: "result" in clients[5].load("key1", "bn254"), "keys stay after their client")
        for c in clients[1:]:
            c.channel.close()


def test_clients_that_stop_are_dropped(folder: Path) -> None:
    """In the middle of a message, or taking no answers; others are served all the while."""
    with serving(folder, Limits(threads=1, stall=0.3), key=VKEYS["bn254"]) as (address, _):
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


def test_clients_that_drip_are_dropped(folder: Path) -> None:
    """Each byte comes in time, and the message never."""
    with serving(folder, Limits(stall=0.5)) as (address, _):
        slow = connect(parse_address(address), WAIT)
        slow.sendall((1 << 16).to_bytes(4, "little"))
        dropped = False
        deadline = time.monotonic() + WAIT
        while not dropped and time.monotonic() < deadline:
            try:
                slow.sendall(b" ")
            except OSError:
                dropped = True
            time.sleep(0.05)
        assert dropped
        slow.close()


def test_clients_that_ask_nothing_are_let_go(folder: Path) -> None:
    with serving(folder, Limits(idle=0.3), key=VKEYS["bn254"]) as (address, _):
        silent = connect(parse_address(address), WAIT)
        silent.settimeout(WAIT)
        assert silent.recv(1) == b""
        silent.close()
        with VerifierClient(address) as caller:
            for _ in range(2):
                assert caller.verify("key", PUBLIC, PROOF)
                until(lambda caller=caller: caller._pid is None, "an idle client stays")


def test_announced_bytes_take_no_room(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has come does, of one connection half of all, and it goes if others wait and it does not go on."""
    monkeypatch.setattr(connections, "PRESSED_SECONDS", 0.3)
    statements = [[PUBLIC, PROOF]] * 140
    with serving(folder, Limits(buffered=1 << 18), key=VKEYS["bn254"]) as (address, served):
        asking = Raw(address)

        def announce(size: int) -> socket.socket:
            one = connect(parse_address(address), WAIT)
            one.sendall((32 << 20).to_bytes(4, "little") + b" " * size)
            return one

        slow = [announce(1) for _ in range(4)]
        assert (
            asking.call("verify_batch", name="key", statements=statements)["result"]["valid"] == [True] * 140
        )
        assert served._connections.held < 64
        slow += [announce((1 << 17) - 4096) for _ in range(3)]
        until(lambda: served._connections.held > 1 << 17, "nothing is read")
        assert (
            asking.call("verify_batch", name="key", statements=statements)["result"]["valid"] == [True] * 140
        )
        for one in slow:
            one.close()
        until(lambda: served._connections.count == 1, "they stay")
        assert asking.call("status")["result"]["buffered"] == 0
        asking.channel.close()


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


# Whatever is sent ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "number", [b"9" * 399, b"-" + b"9" * 399, b"9223372036854775808", b"true", b"1e3", b"null"]
)
def test_ids_that_cannot_be_answered_end_no_thread(folder: Path, number: bytes) -> None:
    with serving(folder, Limits(threads=1), key=VKEYS["bn254"]) as (address, _):
        raw = Raw(address)
        for op in (b"hello", b"verify", b"verify_batch"):
            rest = json.dumps({"name": "key", "public": PUBLIC, "proof": PROOF, "statements": []})[
                1:
            ].encode()
            sent = b'{"op":"' + op + b'","id":' + number + b"," + rest
            raw.channel.send_frame(len(sent).to_bytes(4, "little") + sent)
            answer = raw.answer()
            assert (answer["id"], answer["error"]["kind"]) == (None, "InvalidInput")
        assert raw.call("verify", name="key", public=PUBLIC, proof=PROOF)["result"]["valid"]
        assert raw.call("status")["result"]["counters"]["thread_faults"] == 0
        raw.channel.close()


def test_messages_of_too_many_values_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before they are parsed: what they take then is many times what they are long."""
    monkeypatch.setattr(server, "parse_frame", lambda _: pytest.fail("it is parsed"))
    with serving(folder) as (address, _):
        raw = Raw(address)
        body = b'{"id":1,"op":"verify","public":[' + b"[]," * (server.MAX_VALUES // 2 + 1) + b"0]}"
        raw.channel.send_frame(len(body).to_bytes(4, "little") + body, timeout=WAIT)
        assert "values" in raw.answer()["error"]["message"]
        raw.channel.close()


def test_answers_that_cannot_be_written_are_said_to_be_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(folder, Limits(threads=1), key=VKEYS["bn254"]) as (address, _):
        raw = Raw(address)
        for answer in (
            {"valid": float("nan")},
            {"valid": 1 << 5000},
            {"valid": object()},
            {"valid": "x" * (33 << 20)},
        ):
            monkeypatch.setattr(LoadedKey, "verify", lambda *_, answer=answer: answer)
            monkeypatch.setattr(Server, "_count", lambda *_, **__: None)
            told = raw.call("verify", name="key", public=PUBLIC, proof=PROOF)
            assert told["error"]["kind"] == "ProofGenerationFailed"
        raw.channel.close()


def test_a_thread_that_fails_is_replaced(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And whoever waited for it is told, at least by the end of the connection."""
    with serving(folder, Limits(threads=1), key=VKEYS["bn254"]) as (address, _):
        raw, observer = Raw(address), Raw(address)
        answer = Server._answer

        def fail(*_: Any) -> None:
            monkeypatch.setattr(Server, "_answer", answer)
            raise MemoryError

        raw.send("verify", name="key", public=PUBLIC, proof={})
        assert raw.answer()["error"]["kind"] == "MalformedFile"
        monkeypatch.setattr(Server, "_answer", fail)
        raw.send("verify", name="key", public=PUBLIC, proof=PROOF)
        with pytest.raises(ConnectionLost):
            raw.answer()
        assert observer.call("verify", name="key", public=PUBLIC, proof=PROOF)["result"]["valid"]
        assert observer.call("status")["result"]["counters"]["thread_faults"] == 1
        raw.channel.close()
        observer.channel.close()


def test_threads_that_are_missing_are_told_and_started_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start

    def none_left(thread: threading.Thread) -> None:
        if thread.name.startswith("verify-"):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", none_left)
    with serving(folder, Limits(threads=2), key=VKEYS["bn254"]) as (address, _):
        raw = Raw(address)
        hello = raw.call("hello")["result"]
        assert (hello["ready"], hello["missing_threads"]) == (False, 2)
        monkeypatch.setattr(threading.Thread, "start", start)
        assert raw.call("verify", name="key", public=PUBLIC, proof=PROOF)["result"]["valid"]
        until(lambda: raw.call("hello")["result"]["missing_threads"] == 0, "threads stay away")
        raw.channel.close()


def test_the_end_waits_for_no_parser(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parsing, done = threading.Event(), threading.Event()
    parse = server.parse_frame

    def long(body: bytes) -> Any:
        if len(body) > server.SMALL_MESSAGE:
            parsing.set()
            assert done.wait(WAIT)
        return parse(body)

    monkeypatch.setattr(server, "parse_frame", long)
    try:
        with serving(folder, Limits(grace=0.3), key=VKEYS["bn254"]) as (address, _):
            one, other = Raw(address), Raw(address)
            one.send("verify", name="key", public=PUBLIC, proof={**PROOF, "filling": "x" * 100_000})
            assert parsing.wait(WAIT)
            assert other.call("verify", name="key", public=PUBLIC, proof=PROOF)["result"]["valid"]
            begun = time.monotonic()
        assert time.monotonic() - begun < 10
    finally:
        done.set()
    for raw in (one, other):
        raw.channel.close()


def test_closing_a_channel_waits_for_no_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    from gpuprover import messages

    parsing, done = threading.Event(), threading.Event()

    def long(*_: object) -> Any:
        parsing.set()
        assert done.wait(WAIT)
        return {}

    monkeypatch.setattr(messages, "parse_json", long)
    ours, theirs = (Channel(end) for end in socket.socketpair())
    with ThreadPoolExecutor(2) as pool:
        received = pool.submit(theirs.receive)
        ours.send({})
        assert parsing.wait(WAIT)
        pool.submit(theirs.close).result(5)
        done.set()
        assert received.result(WAIT) == ({}, [])
    ours.close()


def test_a_long_batch_delays_a_proof_by_a_part_at_most(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one thread; the batch then goes on. And no thread is taken from those that hold one for proofs."""
    order: list[str] = []
    part, gate = threading.Semaphore(0), threading.Semaphore(0)

    def some(_: object, statements: list[Any]) -> list[bool]:
        order.append(f"part of {len(statements)}")
        part.release()
        assert gate.acquire(timeout=WAIT)
        return [True] * len(statements)

    verify = LoadedKey.verify

    def single(key: LoadedKey, public: object, proof: object) -> bool:
        order.append("proof")
        return verify(key, public, proof)

    monkeypatch.setattr(LoadedKey, "verify_batch", some)
    monkeypatch.setattr(LoadedKey, "verify", single)
    with serving(folder, Limits(threads=1), key=VKEYS["bn254"]) as (address, served):
        greedy, other = Raw(address), Raw(address)
        count = 3 * server.SLICE_ALONE + 1
        for _ in range(2):
            greedy.send("verify_batch", name="key", statements=[0] * count)
        assert part.acquire(timeout=WAIT)
        number = other.send("verify", name="key", public=PUBLIC, proof=PROOF)
        until(lambda: served._waiting == 2, "the proof does not wait")
        for _ in range(8):
            gate.release()
        assert other.answer() == {"id": number, "result": {"valid": True}}
        assert order[0] == f"part of {server.SLICE_ALONE}"
        assert order.index("proof") <= 2
        assert [len(greedy.answer()["result"]["valid"]) for _ in range(2)] == [count] * 2
        too_many = greedy.call("verify_batch", name="key", statements=[0] * (server.MAX_STATEMENTS + 1))
        assert too_many["error"]["kind"] == "InvalidInput"
        greedy.channel.close()
        other.channel.close()


def test_no_descriptor_for_a_client(folder: Path) -> None:
    """The listener waits and tries again, and others are served meanwhile."""
    with serving(folder, key=VKEYS["bn254"]) as (address, served):
        raw = Raw(address)
        assert raw.call("hello")["result"]["ready"]
        listener = served._connections._listeners[0]
        accept, refused = listener.socket.accept, threading.Semaphore(0)

        class Exhausted:
            """In place of the listening socket."""

            def accept(self) -> Any:
                refused.release()
                raise OSError(errno.EMFILE, "Too many open files")

            def __getattr__(self, name: str) -> Any:
                return getattr(kept, name)

        kept = listener.socket
        listener.socket = Exhausted()  # type: ignore[assignment]
        late = Raw(address)
        for _ in range(2):
            assert refused.acquire(timeout=WAIT)
        assert raw.call("verify", name="key", public=PUBLIC, proof=PROOF)["result"]["valid"]
        assert accept is not None
        listener.socket = kept
        assert late.call("hello")["result"]["ready"]
        assert raw.call("status")["result"]["counters"]["accept_failures"] >= 2
        raw.channel.close()
        late.channel.close()


def test_a_listener_that_cannot_be_watched_is_tried_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the system had no room for a descriptor it may have none for watching the listener either."""
    with serving(folder, key=VKEYS["bn254"]) as (address, served):
        served_connections, tries = served._connections, 0
        register = served_connections._selector.register

        def refuse(file: Any, events: int, data: Any = None) -> Any:
            nonlocal tries
            if isinstance(data, Listener) and tries < 2:
                tries += 1
                raise OSError(errno.ENOMEM, "Cannot allocate memory")
            return register(file, events, data)

        def lack() -> None:
            served_connections._accept_no_more()
            served_connections._accept_after = 0.0

        monkeypatch.setattr(served_connections._selector, "register", refuse)
        served_connections._posted.append(lack)
        served_connections.wake()
        until(lambda: tries == 2, "it is not tried again")
        late = Raw(address)
        assert late.call("hello")["result"]["ready"]
        assert late.call("status")["result"]["counters"]["faults"] == 2
        late.channel.close()


def test_one_that_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Callers are told after a few attempts, however long each of them lasted."""
    monkeypatch.setattr(client, "FIRST_DELAY", 0.01)
    monkeypatch.setattr(client, "STEADY_SECONDS", 0.05)
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        VerifierClient(f"127.0.0.1:{silent.getsockname()[1]}", heartbeat=0.2) as caller,
    ):
        caller._start = 0.2
        with pytest.raises(ConnectionLost):
            caller.verify("key", PUBLIC, PROOF, timeout=WAIT)


def test_no_descriptor_for_a_verifier(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It dies while none is left: callers are told in time, the status and the log say so, and it comes
    back."""
    monkeypatch.setattr(client, "FIRST_DELAY", 0.01)
    monkeypatch.setattr(client, "RARE_DELAY", 0.2)
    pair = socket.socketpair

    def none_left() -> Any:
        raise OSError(errno.EMFILE, "Too many open files")

    with VerifierProcess(keys={"bn254": VKEYS["bn254"]}, threads=1) as verifier:
        assert verifier.wait_ready(WAIT)
        pid = verifier.status().pid
        assert pid is not None
        monkeypatch.setattr(socket, "socketpair", none_left)
        os.kill(pid, signal.SIGKILL)
        until(lambda: gone(pid), "it does not die")
        for _ in range(2):
            with pytest.raises(DeviceError, match="Too many open files"):
                verifier.verify("bn254", PUBLIC, PROOF, timeout=WAIT)
        status = verifier.status()
        assert status.state == "failing"
        assert "Too many open files" in str(status.problem)
        monkeypatch.setattr(socket, "socketpair", pair)
        until(lambda: verifier.status().state == "ready", "nobody tries again")
        assert verifier.verify("bn254", PUBLIC, PROOF)
        assert verifier.status().problem is None
    told = [record.message for record in caplog.records if record.name == "gpuprover.verifier"]
    assert len(told) == 2
    assert "Too many open files" in told[0]
    assert "again" in told[1]


# Whom to believe -------------------------------------------------------------------------------------------


def test_a_socket_of_another_user_is_not_believed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "FIRST_DELAY", 0.01)
    with serving(folder, key=VKEYS["bn254"]) as (address, _):
        with VerifierClient(address) as caller:
            assert caller.verify("key", PUBLIC, PROOF)
        monkeypatch.setattr(addresses, "peer_user", lambda _: 4242)
        with VerifierClient(address) as caller, pytest.raises(AccessDenied, match="user 4242 listens"):
            caller.verify("key", PUBLIC, PROOF)
        with VerifierClient(address, users=[4242]) as caller, pytest.raises(ConnectionLost):
            caller.verify("key", PUBLIC, PROOF)  # now the verifier does not take the client for its user
        monkeypatch.undo()
        folder.chmod(0o777)
        with VerifierClient(address) as caller, pytest.raises(AccessDenied, match="others may write"):
            caller.verify("key", PUBLIC, PROOF)
        folder.chmod(0o700)
        link = folder / "link"
        link.symlink_to(address)
        with VerifierClient(str(link)) as caller, pytest.raises(AccessDenied, match="no socket"):
            caller.verify("key", PUBLIC, PROOF)


def test_users_who_are_named_may_connect(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = unix_address(str(folder / "v.sock"))
    listener = Listener(path, users=[4242])
    try:
        assert stat.S_IMODE((folder / "v.sock").stat().st_mode) == 0o666
        ours, theirs = socket.socketpair(socket.AF_UNIX)
        for user, name in ((os.geteuid(), f"user {os.geteuid()}"), (4242, "user 4242"), (4243, None)):
            monkeypatch.setattr(addresses, "peer_user", lambda _, user=user: user)
            assert listener.admitted(ours) == name
        ours.close()
        theirs.close()
    finally:
        listener.close()


def test_users_who_are_named_cannot_end_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(folder, users=(4242,), key=VKEYS["bn254"]) as (address, _):
        own = Raw(address)
        assert own.call("hello")["result"]["ready"]
        monkeypatch.setattr(addresses, "peer_user", lambda _: 4242)
        raw = Raw(address, users=(4242,))
        assert raw.call("verify", name="key", public=PUBLIC, proof=PROOF)["result"]["valid"]
        assert "not by this user" in raw.call("shutdown")["error"]["message"]
        assert raw.call("hello")["result"]["ready"]
        assert own.call("shutdown")["result"] == {}
        raw.channel.close()
        own.channel.close()


@pytest.fixture
def secret(folder: Path) -> Path:
    path = folder / "secret"
    path.write_text("0123456789abcdef" * 2 + "\n")
    path.chmod(0o600)
    return path


@contextmanager
def serving_tcp(secret: bytes | None, **keys: Any) -> Iterator[tuple[str, Server]]:
    listener = Listener(tcp_address("127.0.0.1:0"))
    served = Server(Limits(), secret=secret)
    served.listen(listener)
    for name, vkey in keys.items():
        served.load(name, vkey, name)
    with running(served):
        yield str(listener.address), served


def test_a_secret_over_tcp(folder: Path, secret: Path) -> None:
    """Either side without it, or with another one, gets nothing."""
    other = folder / "other"
    other.write_text("x" * 32)
    other.chmod(0o600)
    with serving_tcp(read_secret(secret), key=VKEYS["bn254"]) as (address, _):
        with VerifierClient(address, secret_file=secret) as caller:
            assert caller.verify("key", PUBLIC, PROOF)
            assert not caller.verify("key", WRONG, PROOF)
            batch = [(PUBLIC, PROOF)] * PART + [(WRONG, PROOF)]
            assert caller.verify_batch("key", batch) == [True] * PART + [False]
        with VerifierClient(address) as caller, pytest.raises(AccessDenied, match="has a secret"):
            caller.verify("key", PUBLIC, PROOF)
        with (
            VerifierClient(address, secret_file=other) as caller,
            pytest.raises(AccessDenied, match="not know"),
        ):
            caller.verify("key", PUBLIC, PROOF)
        for first in ("verify", "hello", "status", "load"):
            raw = Raw(address)
            raw.send(first, name="key", public=PUBLIC, proof=PROOF)
            assert raw.answer()["error"]["kind"] == "AccessDenied"
            with pytest.raises(ConnectionLost):
                raw.answer()
            raw.channel.close()
        raw = Raw(address)
        assert raw.call("authenticate", nonce="00" * 32)["result"]["proof"]
        raw.send("authenticate", proof="00" * 32)
        assert raw.answer()["error"]["kind"] == "AccessDenied"
        raw.channel.close()
        raw = Raw(address)
        raw.channel.send_frame((UNTRUSTED_MESSAGE + 1).to_bytes(4, "little"))
        assert raw.answer()["error"]["kind"] == "BrokenMessage"
        raw.channel.close()
    with (
        serving_tcp(None, key=VKEYS["bn254"]) as (address, _),
        VerifierClient(address, secret_file=secret) as caller,
        pytest.raises(AccessDenied, match="no secret"),
    ):
        caller.verify("key", PUBLIC, PROOF)


class Between:
    """Passes bytes on between one client and a verifier; ``change(n, frame)`` makes of the verifier's n-th
    frame what the client gets."""

    def __init__(self, address: str, change: Callable[[int, bytes], bytes]) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._target, self._change = parse_address(address), change
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        with suppress(OSError):
            while True:
                ours, _ = self._listener.accept()
                theirs = connect(self._target, WAIT)
                threading.Thread(target=self._up, args=(ours, theirs), daemon=True).start()
                threading.Thread(target=self._down, args=(theirs, ours), daemon=True).start()

    @staticmethod
    def _up(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)

    def _down(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError), source.makefile("rb") as file:
            for n in itertools.count():
                header = file.read(4)
                if len(header) < 4:
                    break
                size = int.from_bytes(header, "little") + (32 if n else 0)
                target.sendall(self._change(n, header + file.read(size)))
        target.close()

    def close(self) -> None:
        self._listener.close()


@pytest.mark.parametrize("kind", ["honest", "lie", "repeat", "strip", "own", "downgrade"])
def test_nobody_on_the_way_can_answer(
    folder: Path, secret: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "FIRST_DELAY", 0.01)
    first: list[bytes] = []

    def change(n: int, frame: bytes) -> bytes:
        if kind == "downgrade" and n == 0:
            body = b'{"id":0,"result":{}}'
            return len(body).to_bytes(4, "little") + body
        if n < 3 or kind == "honest":  # nonce and proof, their confirmation, hello
            return frame
        if b'"valid":true' in frame:
            first.append(frame)
        lie = frame.replace(b"false", b"true ")
        if kind == "repeat":
            return first[0] if first else frame
        if kind == "strip":
            return lie[:-32]
        if kind == "own":
            return lie[:-32] + hmac.digest(b"x" * 32, lie[:-32], "sha256")
        return lie

    with serving_tcp(read_secret(secret), key=VKEYS["bn254"]) as (address, _):
        between = Between(address, change)
        with VerifierClient(between.address, secret_file=secret) as caller:
            if kind in ("repeat", "honest"):
                assert caller.verify("key", PUBLIC, PROOF)
            if kind == "honest":
                assert not caller.verify("key", WRONG, PROOF)
            else:
                with pytest.raises((ConnectionLost, AccessDenied, Timeout)):
                    caller.verify("key", WRONG, PROOF, timeout=2)
        between.close()


def test_secrets_that_are_none(folder: Path, secret: Path) -> None:
    assert read_secret(secret) == b"0123456789abcdef" * 2
    for mode in (0o640, 0o604, 0o620):
        secret.chmod(mode)
        with pytest.raises(InvalidInput, match="expected mode 0600"):
            read_secret(secret)
    secret.chmod(0o600)
    link = folder / "link"
    link.symlink_to(secret)
    short = folder / "short"
    short.touch(0o600)
    os.mkfifo(folder / "fifo", 0o600)
    for path in (link, short, folder / "fifo", folder, folder / "none"):
        with pytest.raises(InvalidInput, match="secret"):
            read_secret(path)


def test_other_machines_need_a_secret_or_a_loud_word(run: Any, folder: Path, secret: Path) -> None:
    for listen in ("0.0.0.0:0", "[::]:0"):
        with suppress(DeviceError), pytest.raises(InvalidInput, match=r"--secret-file.*--insecure"):
            Listener(tcp_address(listen))
    Listener(tcp_address("0.0.0.0:0"), anywhere=True).close()
    for address in ("192.0.2.1:80", "example.org:80", "[2001:db8::1]:80", "0.0.0.0:80"):
        with pytest.raises(InvalidInput, match="another machine"):
            VerifierClient(address)
        VerifierClient(address, insecure=True).close()
        VerifierClient(address, secret_file=secret).close()
    ran = run("verifier", "--listen", "0.0.0.0:0")
    assert ran.code == 2
    assert "--insecure" in ran.err
    ran = run("verifier", "--listen", "0.0.0.0:0", "--insecure", "--secret-file", secret)
    assert ran.code == 2
    with started("--listen", "0.0.0.0:0", "--insecure") as (process, announced):
        assert announced["ready"]
        process.terminate()
        assert process.wait(WAIT) == 0
        assert "INSECURE" in process.stderr.read()


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
    forbidden = (
        "cupy",
        "wasmtime",
        "rich",
        "gpuprover.cuda",
        "gpuprover.systems.groth16.key",
        "gpuprover.cli",
    )
    forbidden += (
        "gpuprover.api",
        "gpuprover.witness",
        "gpuprover.scheduler",
        "gpuprover.systems.groth16.prover",
    )
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
            sent = [raw.send("verify_batch", name="key", statements=statements) for _ in range(3)]
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
        assert len(kinds) == 24
        assert set(kinds) <= {"answered", "QueueFull"}
        status = observer.status()
        peak = status.memory["peak"]
        assert peak is not None
        assert peak - before < 120e6
        assert status.buffered == 0
