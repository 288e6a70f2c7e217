"""Worker processes and their supervisor: proofs as in this process, and an answer whatever dies."""

from __future__ import annotations

import gc
import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import gpuprover
from gpuprover import folders, memory, processes
from gpuprover.circuits import chain_circuit
from gpuprover.errors import (
    Cancelled,
    DeviceError,
    InvalidInput,
    OutOfMemory,
    ProofGenerationFailed,
    ProverError,
    ShuttingDown,
    Timeout,
    UnsatisfiedWitness,
    WitnessMismatch,
)
from gpuprover.executor import Executor, KeyChanged, KeyInfo, Lost, ProofRequest, WorkerStatus
from gpuprover.formats.files import Identity, identity_of
from gpuprover.job import Job, Progress
from gpuprover.limbs import ints_to_words
from gpuprover.messages import Channel
from gpuprover.proving import ProofResult
from gpuprover.runner import Runner
from gpuprover.settings import WORKER_BYTES
from gpuprover.witness_source import WitnessBytes, WitnessFile, WitnessInputs, WitnessValues, looked_at
from gpuprover.workers import PoolSettings, WorkerPool, slots, wire
from gpuprover.workers import worker as worker_process
from tests.support.paths import ROOT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
SECONDS = 120
"""No wait is longer; on an idle machine none is longer than two."""
QUICK = {"backoff": (0.01, 2.0, 0.2, 0.1), "gpus": ()}


class Circuit(NamedTuple):
    zkey: str
    wtns: str
    info: KeyInfo

    @property
    def secret(self) -> bytes:
        return Path(self.wtns).read_bytes()


def key_info(path: str, identity: Identity, rows: int, verification_key: dict[str, Any]) -> KeyInfo:
    return KeyInfo(
        path=path,
        identity=identity,
        protocol="groth16",
        curve="bn254",
        constraints=rows,
        n_public=2,
        n_vars=1,
        host_parts=frozenset(),
        plans={},
        verification_key=verification_key,
        digest="",
        warnings=(),
    )


@pytest.fixture(scope="module")
def circuits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Circuit]:
    """Circuits whose proofs take milliseconds, a fifth of a second, and half a second."""
    folder, found = tmp_path_factory.mktemp("circuits"), {}
    for name, length in (("short", 200), ("long", 30_000), ("longest", 65_000)):
        path = folder / name
        chain_circuit(length).write(f"{path}.r1cs", f"{path}.wtns")
        gpuprover.setup(f"{path}.r1cs", f"{path}.zkey", insecure=True)
        zkey = f"{path}.zkey"
        key = gpuprover.load_key(zkey)
        info = key_info(zkey, identity_of(zkey), length, key.verification_key)
        found[name] = Circuit(zkey, f"{path}.wtns", info)
    return found


@pytest.fixture
def short(circuits: dict[str, Circuit]) -> Circuit:
    return circuits["short"]


@pytest.fixture
def long(circuits: dict[str, Circuit]) -> Circuit:
    return circuits["long"]


@pytest.fixture
def longest(circuits: dict[str, Circuit]) -> Circuit:
    return circuits["longest"]


class Client:
    """The least engine: asks, keeps every answer, and asks again for what was lost."""

    def __init__(self, executor: Executor, again: bool = False) -> None:
        self.pool = executor
        self.answers: dict[int, list[ProofResult | ProverError | Lost]] = {}
        self.steps: list[tuple[int, Progress]] = []
        self.lost: Counter[int] = Counter()
        self._again, self._number, self._changed = again, 0, threading.Condition()

    def ask(self, circuit: Circuit, witness: Any = None, **options: Any) -> int:
        self._number += 1
        given = circuit.wtns if witness is None else witness
        request = ProofRequest(self._number, circuit.zkey, circuit.info.identity, looked_at(given), **options)
        self.answers[request.id] = []
        self._send(request)
        return request.id

    def _send(self, request: ProofRequest) -> None:
        self.pool.prove(request, self._done, lambda step: self.steps.append((request.id, step)))

    def _done(self, request: ProofRequest, answer: ProofResult | ProverError | Lost) -> None:
        with self._changed:
            if isinstance(answer, Lost) and self._again:
                self.lost[request.id] += 1
                self._send(request)
                return
            self.answers[request.id].append(answer)
            self._changed.notify_all()

    def answer(self, number: int) -> ProofResult | ProverError | Lost:
        with self._changed:
            assert self._changed.wait_for(lambda: self.answers[number], SECONDS), f"no answer to {number}"
            (answer,) = self.answers[number]
            return answer

    def proof(self, number: int) -> ProofResult:
        answer = self.answer(number)
        assert isinstance(answer, ProofResult), repr(answer)
        return answer

    def prove(self, circuit: Circuit, witness: Any = None, **options: Any) -> ProofResult:
        return self.proof(self.ask(circuit, witness, **options))

    def load(self, path: str, pin: bool = False) -> KeyInfo | ProverError | Lost:
        found: list[KeyInfo | ProverError | Lost] = []
        loaded = threading.Event()

        def done(answer: KeyInfo | ProverError | Lost) -> None:
            found.append(answer)
            loaded.set()

        self.pool.load(path, pin, done)
        assert loaded.wait(SECONDS)
        return found[0]

    def key(self, path: str, pin: bool = False) -> KeyInfo:
        found = self.load(path, pin)
        assert isinstance(found, KeyInfo), repr(found)
        return found


def eventually(condition: Callable[[], Any], seconds: float = SECONDS) -> Any:
    end = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < end:
        time.sleep(0.02)
    assert found
    return found


def is_gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z"


def descriptors() -> list[str]:
    gc.collect()
    return sorted(os.listdir("/proc/self/fd"))


@contextmanager
def running(again: bool = False, **settings: Any) -> Iterator[Client]:
    """A pool of its own; after it nothing is left: no process, thread or descriptor."""
    before, threads = len(descriptors()), set(threading.enumerate())
    own = WorkerPool(PoolSettings(**{"threads": 2, **QUICK, **settings}))
    seen: set[int] = set()

    def changed() -> None:
        seen.update(w.pid for w in own.workers() if w.pid is not None)

    own.start(changed)
    try:
        yield Client(own, again)
    finally:
        own.close(5)
        assert own.workers() == []
        assert own.memory() == 0
        assert [t for t in threading.enumerate() if t not in threads and "timeout" not in t.name] == []
        assert not [pid for pid in seen if Path(f"/proc/{pid}").exists()], "children are reaped"
        # A thread of the shared pool may have had one open for a moment.
        eventually(lambda: len(descriptors()) <= before)


def only(client: Client) -> WorkerStatus:
    (status,) = client.pool.workers()
    return status


def pid_of(client: Client) -> int:
    """Of the only worker, when it runs."""
    found: int = eventually(lambda: [w.pid for w in client.pool.workers() if w.state in ("idle", "busy")])[0]
    return found


def busy(client: Client) -> int:
    """The process of a worker that proves now."""
    found: int = eventually(lambda: [w.pid for w in client.pool.workers() if w.state == "busy"])[0]
    return found


@pytest.fixture(scope="module")
def shared(circuits: dict[str, Circuit]) -> Iterator[Client]:
    """Two workers that keep the key of the long circuit."""
    with running(min_workers=2, max_workers=2, warm=True) as client:
        client.key(circuits["long"].zkey, pin=True)
        eventually(lambda: [w.state for w in client.pool.workers()] == ["idle", "idle"])
        yield client
        assert all(w.restarts == 0 for w in client.pool.workers())


# Proofs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["path", "bytes", "bytearray", "memoryview", "integers", "words"])
def test_a_worker_proves_as_this_process_does(shared: Client, short: Circuit, form: str) -> None:
    data = short.secret
    witness = chain_circuit(200).witness.values
    forms: dict[str, Any] = {
        "path": Path(short.wtns),
        "bytes": data,
        "bytearray": bytearray(data),
        "memoryview": memoryview(data + data)[len(data) :],
        "integers": [int.from_bytes(row.tobytes(), "little") for row in witness],
        "words": witness,
    }
    result = shared.prove(short, forms[form], threads=2)
    expected = gpuprover.prove(short.zkey, short.wtns, device="cpu")
    assert result.public_signals == expected.public_signals
    assert (result.device, result.warnings) == ("cpu", expected.warnings)
    assert result.memory["peak"] >= result.memory["before"] > 0
    assert {"msm", "verify"} <= set(result.timings)
    assert gpuprover.verify(short.info.verification_key, result.public_signals, result.proof)


def test_a_request_arrives_as_it_was_sent(short: Circuit) -> None:
    request = ProofRequest(
        7, short.zkey, short.info.identity, WitnessBytes(b""), "cuda:1", 3, frozenset({"G2"}), 1 << 40, 2.5
    )
    inputs = {
        "inputs": {"a": [1, -(1 << 300), "0x10"], "b": np.uint64(7), "c": np.arange(3)},
        "wasm": "c.wasm",
    }
    program = os.path.abspath("c.wasm")
    for witness, seen in (
        (b"", WitnessBytes(b"")),
        (memoryview(b"w_t_n_s_")[::2], WitnessBytes(b"wtns")),
        (
            inputs,
            WitnessInputs({"a": [1, -(1 << 300), "0x10"], "b": 7, "c": [0, 1, 2]}, program),
        ),
        (
            {"inputs": b'{"a": [1, "0x10"]}', "wasm": Path("c.wasm"), "fuel": 5},
            WitnessInputs(b'{"a": [1, "0x10"]}', program, 5),
        ),
        ("relative.wtns", WitnessFile(os.path.abspath("relative.wtns"))),
    ):
        assert sent(replace(request, witness=looked_at(witness))) == replace(request, witness=seen)
    for values in ([], [1, (1 << 256) - 1], np.arange(8, dtype=np.uint64).reshape(-1, 4)[::-1]):
        found = sent(replace(request, witness=looked_at(values)))
        assert isinstance(found.witness, WitnessValues)
        words = values if isinstance(values, np.ndarray) else ints_to_words(values, 4)
        assert np.array_equal(found.witness.values, words)
        assert replace(found, witness=request.witness) == request
    assert repr(request) == repr(replace(request, witness=WitnessBytes(b"secret")))


def sent(request: ProofRequest) -> ProofRequest:
    """A request as it arrives."""
    parcel = wire.Parcel(request)
    message = json.loads(json.dumps(parcel.message))
    found = wire.unpack(message, [os.dup(fd) for fd in parcel.fds])
    parcel.close()
    return found


@pytest.mark.parametrize(
    "witness",
    [
        ["1", object()],
        [-1],
        [1 << 256],
        7,
        np.zeros((2, 4), dtype=np.float64),
        {"inputs": {"a": {1}}, "wasm": "c.wasm"},
    ],
    ids=["text", "negative", "large", "number", "floats", "set"],
)
def test_what_is_no_witness_is_told_before_a_worker_is_asked(
    shared: Client, short: Circuit, witness: Any
) -> None:
    assert isinstance(shared.answer(shared.ask(short, witness)), InvalidInput)


def test_errors_of_workers_are_those_of_the_library(
    shared: Client, short: Circuit, long: Circuit, tmp_path: Path
) -> None:
    data = bytearray(short.secret)
    data[-32] ^= 1
    wrong = short.info.identity._replace(modified=1)
    changed = short._replace(info=replace(short.info, identity=wrong))
    asked = {
        UnsatisfiedWitness: shared.ask(short, bytes(data)),
        WitnessMismatch: shared.ask(short, long.wtns),
        InvalidInput: shared.ask(short, tmp_path / "missing.wtns"),
        KeyChanged: shared.ask(changed),
        DeviceError: shared.ask(short, device="cuda:7"),
    }
    for kind, number in asked.items():
        answer = shared.answer(number)
        assert type(answer) is kind, repr(answer)
    answer = shared.answer(shared.ask(short, {"inputs": {"x": 1}, "wasm": tmp_path / "missing.wasm"}))
    assert isinstance(answer, InvalidInput)
    assert "missing.wasm" in answer.message


def test_a_request_has_one_run(shared: Client, long: Circuit) -> None:
    number = shared.ask(long)
    refused: list[Any] = []
    shared.pool.prove(
        ProofRequest(number, long.zkey, long.info.identity, WitnessFile(long.wtns)),
        lambda _, answer: refused.append(answer),
    )
    assert isinstance(shared.answer(number), ProofResult)
    assert isinstance(eventually(lambda: refused)[0], ProofGenerationFailed)


def test_proofs_run_beside_each_other_and_the_next_one_waits(shared: Client, longest: Circuit) -> None:
    shared.key(longest.zkey)
    asked = [shared.ask(longest) for _ in range(3)]
    first, second, third = asked
    eventually(lambda: sorted(w.jobs for w in shared.pool.workers()) == [(first,), (second,)])
    assert shared.answers[third] == []
    for number in asked:
        assert gpuprover.verify(
            longest.info.verification_key, (proof := shared.proof(number)).public_signals, proof.proof
        )
    assert {phase for number, (phase, _, _) in shared.steps if number == first} >= {"quotient", "msm"}
    fractions = [step.fraction for number, step in shared.steps if number == first and step.phase == "msm"]
    assert fractions == sorted(fractions)
    assert all(0 <= fraction <= 1 for fraction in fractions)


def test_a_cancelled_proof_ends_soon_and_its_worker_stays(shared: Client, longest: Circuit) -> None:
    before = {w.pid for w in shared.pool.workers()}
    asked = [shared.ask(longest) for _ in range(3)]
    eventually(lambda: sorted(w.jobs for w in shared.pool.workers()) == [(asked[0],), (asked[1],)])
    begun = time.monotonic()
    for number in reversed(asked):
        shared.pool.cancel(number)
        shared.pool.cancel(number)
    assert {type(shared.answer(number)) for number in asked} == {Cancelled}
    assert time.monotonic() - begun < slots.EXIT_SECONDS
    shared.pool.cancel(asked[0])
    shared.prove(longest)
    assert {w.pid for w in shared.pool.workers()} == before


def test_a_time_limit_is_kept_by_the_worker(shared: Client, longest: Circuit) -> None:
    before = {w.pid for w in shared.pool.workers()}
    answer = shared.answer(shared.ask(longest, timeout=0.1))
    assert isinstance(answer, Timeout)
    assert "did not notice" not in answer.message
    assert {w.pid for w in shared.pool.workers()} == before


# Keys and memory --------------------------------------------------------------------------------------


def test_a_key_is_planned_for_in_a_worker(shared: Client, short: Circuit, tmp_path: Path) -> None:
    assert shared.key(short.zkey) == Runner().load(short.zkey, job=Job(threads=2))
    assert isinstance(shared.load(str(tmp_path / "missing.zkey")), InvalidInput)
    shared.pool.unload(short.zkey)
    shared.pool.shrink()
    shared.prove(short)


def test_devices_are_what_workers_say_and_what_may_be_used(shared: Client) -> None:
    from gpuprover.devices import cpu_path_name
    from gpuprover.machine import processor_name

    (cpu,) = shared.pool.devices
    assert (cpu.name, cpu.kind, cpu.model, cpu.path) == ("cpu", "cpu", processor_name(), cpu_path_name())
    assert (cpu.threads, cpu.proofs, cpu.memory, cpu.problem) == (2, 2, None, "")


def mapped(pid: int, path: str) -> dict[str, int]:
    """Sums over a file's mappings in another process, in bytes."""
    try:
        lines = Path(f"/proc/{pid}/smaps").read_text().splitlines()
    except PermissionError:
        pytest.skip("only root sees the mappings of a process that is not dumpable")
    sums: Counter[str] = Counter()
    inside = False
    for line in lines:
        words = line.split()
        if not words[0].endswith(":"):
            inside = line.endswith(path)
        elif inside and words[-1] == "kB":
            sums[words[0].rstrip(":")] += int(words[1]) * 1024
    return sums


def test_workers_share_one_copy_of_a_key(shared: Client, long: Circuit) -> None:
    pids = [w.pid for w in shared.pool.workers() if w.pid is not None]

    def copies() -> list[dict[str, int]]:
        return [mapped(pid, long.zkey) for pid in pids]

    size = os.path.getsize(long.zkey)
    while min(found["Rss"] for found in copies()) < 0.9 * size:
        for number in [shared.ask(long) for _ in range(2)]:
            shared.proof(number)
    assert sum(found["Pss"] for found in copies()) < 1.05 * size
    assert sum(found["Private_Dirty"] for found in copies()) == 0


def test_the_memory_of_workers_is_known_and_taken_off_the_limit(short: Circuit) -> None:
    limit = 1 << 33
    with running(max_workers=2, memory_limit=limit >> 20) as client:
        client.prove(short)
        (worker,) = eventually(lambda: [w for w in client.pool.workers() if w.memory is not None])
        assert 10 << 20 < worker.memory.rss < 1 << 30
        assert 10 << 20 < client.pool.memory() < worker.memory.rss
        (cpu,) = client.pool.devices
        taken = limit - cpu.memory
        mine = memory.resident_anonymous()
        assert 2 * WORKER_BYTES < taken < 3 * WORKER_BYTES + mine + (512 << 20)


def test_a_worker_that_the_system_refuses_memory_says_so(short: Circuit) -> None:
    with running() as client:
        client.prove(short)
        pid = pid_of(client)
        now = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()
        resource.prlimit(pid, resource.RLIMIT_AS, (now + (20 << 20), resource.RLIM_INFINITY))
        answer = client.answer(client.ask(short, bytes(64 << 20)))
        assert type(answer) is OutOfMemory, repr(answer)
        resource.prlimit(pid, resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        client.prove(short)
        assert pid_of(client) == pid


def test_a_worker_at_rest_hands_memory_back_once(monkeypatch: pytest.MonkeyPatch) -> None:
    trims = []
    monkeypatch.setattr(memory, "trim", lambda: trims.append(1))
    left, right = socket.socketpair()
    one = worker_process.Worker(Channel(left))
    one._rest()
    one._ended = time.monotonic()
    one._rest()
    one._ended -= worker_process.REST_SECONDS
    one._running[1] = threading.Event()
    one._rest()
    assert not trims, "nothing was proved, a moment ago, and now"
    del one._running[1]
    one._rest()
    one._rest()
    assert len(trims) == 1
    left.close()
    right.close()


# Secrets ------------------------------------------------------------------------------------------------


def test_a_witness_is_seen_nowhere(longest: Circuit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", None)
    data = longest.secret
    value = data[len(data) // 2 :][:32]
    shown = [value, str(int.from_bytes(value, "little")).encode(), value.hex().encode()]
    with running() as client:
        pid = pid_of(client)
        number = client.ask(longest, data)
        busy(client)
        for name in ("cmdline", "environ"):
            try:
                seen = Path(f"/proc/{pid}/{name}").read_bytes()
            except PermissionError:
                continue  # as it should be
            assert seen
            assert not any(secret in seen for secret in shown)
        files = [path for path in folder.rglob("*") if path.is_file()]
        assert not any(secret in path.read_bytes() for path in files for secret in shown)
        client.proof(number)
    assert list(folder.iterdir()) == []


class Talk:
    """A worker without a supervisor."""

    def __init__(self) -> None:
        mine, theirs = socket.socketpair()
        self.child = processes.spawn(
            "gpuprover.workers", str(theirs.fileno()), str(os.getpid()), fds=[theirs.fileno()]
        )
        theirs.close()
        self.channel = Channel(mine)
        start = {
            "device": "cpu",
            "key_bytes": 1 << 40,
            "pinned": [],
            "warm": False,
            "survey": False,
            "threads": 1,
        }
        self.channel.send({"type": "start", **start})

    def hear(self, kind: str) -> dict[str, Any]:
        while True:
            message, _ = self.channel.receive(SECONDS)
            if message["type"] == kind:
                return message

    def prove(self, circuit: Circuit, number: int = 1) -> None:
        parcel = wire.Parcel(
            ProofRequest(number, circuit.zkey, circuit.info.identity, WitnessBytes(circuit.secret))
        )
        self.channel.send(parcel.message, parcel.fds)
        parcel.close()

    def end(self) -> None:
        self.channel.close()
        self.child.kill()
        self.child.wait(SECONDS)
        self.child.close()


@pytest.fixture
def talk() -> Iterator[Talk]:
    talk = Talk()
    yield talk
    talk.end()


def test_a_worker_keeps_its_memory_to_itself_and_says_so(talk: Talk) -> None:
    hello = talk.hear("hello")
    assert hello["hardened"] is True
    (line,) = (x for x in Path(f"/proc/{talk.child.pid}/limits").read_text().splitlines() if "core" in x)
    assert line.split()[4:6] == ["0", "0"]
    assert Path(f"/proc/{talk.child.pid}/environ").stat().st_uid == 0
    assert talk.hear("alive")["memory"]["rss"] > 10 << 20


def test_a_worker_that_is_asked_to_end_ends_what_it_began(talk: Talk, longest: Circuit) -> None:
    talk.hear("hello")
    talk.prove(longest, 1)
    talk.hear("progress")
    talk.child.terminate()
    talk.hear("stopping")
    talk.prove(longest, 2)
    assert talk.hear("refused")["id"] == 2
    message = talk.hear("done")
    assert message["id"] == 1
    assert "result" in message
    assert talk.child.wait(SECONDS)
    assert talk.child.describe() == "ended with status 0"


def test_a_worker_ends_with_its_socket(talk: Talk, longest: Circuit) -> None:
    talk.hear("hello")
    talk.prove(longest)
    talk.hear("progress")
    talk.channel.close()
    assert talk.child.wait(60)
    assert talk.child.describe() == "ended with status 0"


# Deaths -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("requests", "kills"), [(9, 4), pytest.param(20, 8, marks=pytest.mark.slow)])
def test_whatever_dies_under_load_every_request_is_answered_once(
    long: Circuit, rng: random.Random, requests: int, kills: int
) -> None:
    with running(again=True, min_workers=2, max_workers=2) as client:
        client.key(long.zkey, pin=True)
        asked = [client.ask(long, long.secret) for _ in range(requests)]
        killed: list[int] = []
        while len(killed) < kills and not all(client.answers[number] for number in asked):
            workers = [w for w in client.pool.workers() if w.state == "busy" and w.pid not in killed]
            if workers:
                victim = rng.choice(workers)
                time.sleep(rng.random() * 0.15)
                os.kill(victim.pid or 0, signal.SIGKILL)
                killed.append(victim.pid or 0)
            time.sleep(0.02)
        for number in asked:
            proof = client.proof(number)
            assert gpuprover.verify(long.info.verification_key, proof.public_signals, proof.proof)
        time.sleep(0.2)
        assert [len(client.answers[number]) for number in asked] == [1] * len(asked)
        assert len(killed) >= kills // 2
        assert client.lost.total() > 0
        assert eventually(lambda: sum(w.restarts for w in client.pool.workers()) >= len(killed))


def test_a_worker_that_was_stopped_is_found_by_its_silence(long: Circuit) -> None:
    with running(heartbeat_timeout=5, warm=True) as client:
        client.key(long.zkey, pin=True)
        pid = pid_of(client)
        os.kill(pid, signal.SIGSTOP)
        answer = client.answer(client.ask(long))
        assert isinstance(answer, Lost)
        assert "silent" in str(answer)
        assert pid_of(client) != pid
        assert is_gone(pid)
        assert mapped(pid_of(client), long.zkey)["Size"] > 0, "a pinned key is there before the first proof"
        client.prove(long)
        assert only(client).restarts == 1


# Starts that fail -----------------------------------------------------------------------------------------


def test_workers_that_cannot_start_are_an_error_and_heal(
    short: Circuit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROVER_CPU_PATH", "nonsense")
    with running() as client:
        answer = client.answer(client.ask(short))
        assert isinstance(answer, DeviceError)
        assert "PROVER_CPU_PATH: expected ifma or portable" in answer.message
        assert type(client.load(short.zkey)) is DeviceError
        (cpu,) = client.pool.devices
        assert cpu.problem == answer.told
        assert "PROVER_CPU_PATH" in only(client).problem
        monkeypatch.delenv("PROVER_CPU_PATH")
        eventually(lambda: not client.pool.devices[0].problem)
        client.prove(short)


def test_what_a_worker_said_before_it_died_is_told(
    short: Circuit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "numpy.py").write_text("raise ImportError('broken on purpose')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with running() as client:
        answer = client.answer(client.ask(short))
        assert isinstance(answer, DeviceError)
        assert answer.message.endswith("ended with status 1: ImportError: broken on purpose")
        # Whoever may read the status is not told what others wrote, which may name files of this machine.
        assert only(client).problem == "the process ended with status 1"
        assert "on purpose" not in answer.told
        assert "on purpose" not in client.pool.devices[0].problem


# A stub in place of workers ------------------------------------------------------------------------------


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Workers are stubs from now on, which start as they are told to."""

    def spawn(_: str, *arguments: str, **options: Any) -> processes.Child:
        return processes.spawn("tests.support.stub_worker", *arguments, **options)

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(slots, "spawn", spawn)
    return lambda how: monkeypatch.setenv("STUB", how)


def stub_key(how: str, device: str = "cpu") -> tuple[Circuit, dict[str, Any]]:
    info = key_info("", short_identity(), 1, {})
    return Circuit(f"/{how}", "w.wtns", info), {"device": device}


def short_identity() -> Any:
    return identity_of("/")


@pytest.mark.parametrize("end", ["cancel", "timeout"])
def test_a_worker_that_does_not_listen_is_ended_by_force(stub: Callable[[str], None], end: str) -> None:
    stub("")
    with running(response_time=0.2) as client:
        circuit, options = stub_key("waits")
        pid = pid_of(client)
        number = client.ask(circuit, timeout=0.2 if end == "timeout" else None, **options)
        assert busy(client) == pid
        if end == "cancel":
            client.pool.cancel(number)
        assert type(client.answer(number)) is (Cancelled if end == "cancel" else Timeout)
        assert is_gone(pid)
        any_, _ = stub_key("any")
        client.prove(any_, **options)
        assert pid_of(client) != pid
        assert len(client.answers[number]) == 1


def test_what_a_worker_warns_of_is_told_once(
    stub: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody sees what it writes."""
    stub("")
    monkeypatch.setattr(folders, "_told", set())
    told: list[str] = []
    with folders.warnings_to(told.append), running() as client:
        circuit, options = stub_key("warns")
        client.prove(circuit, **options)
        client.prove(circuit, **options)
    assert told == ["there is no room"]


def test_a_worker_that_ends_of_itself_is_replaced(stub: Callable[[str], None]) -> None:
    stub("")
    with running() as client:
        circuit, options = stub_key("any")
        pid = pid_of(client)
        os.kill(pid, signal.SIGTERM)
        eventually(lambda: is_gone(pid))
        client.prove(circuit, **options)
        assert pid_of(client) != pid
        assert only(client).restarts == 1


def test_a_worker_is_replaced_after_so_many_proofs(stub: Callable[[str], None]) -> None:
    stub("")
    with running(max_proofs_per_worker=3) as client:
        circuit, options = stub_key("any")
        pids = []
        for _ in range(3):
            pids.append(pid_of(client))
            client.prove(circuit, **options)
            client.prove(circuit, **options)
            assert pid_of(client) == pids[-1]
            client.prove(circuit, **options)
            eventually(lambda: pid_of(client) != pids[-1] and only(client).state == "idle")
            eventually(lambda: is_gone(pids[-1]))
        assert len(set(pids)) == 3
        assert (only(client).restarts, only(client).proofs) == (0, 0)


def test_a_worker_that_is_replaced_works_until_the_other_is_ready(stub: Callable[[str], None]) -> None:
    stub("")
    with running(max_proofs_per_worker=1) as client:
        circuit, options = stub_key("any")
        first = pid_of(client)
        stub("hang")
        client.prove(circuit, **options)
        client.prove(circuit, **options)
        assert pid_of(client) == first
        waits, _ = stub_key("waits")
        number = client.ask(waits, **options)
        busy(client)
        stub("")
        (slot,) = client.pool._slots
        os.kill(eventually(lambda: slot.successor).child.pid, signal.SIGKILL)
        # Its last run is ended, and then it ends.
        assert isinstance(client.answer(number), ProofResult)
        eventually(lambda: pid_of(client) != first)
        assert only(client).restarts == 0


def test_a_worker_that_holds_much_memory_is_replaced(stub: Callable[[str], None]) -> None:
    stub("")
    with running(worker_memory=100) as client:
        circuit, options = stub_key("grows")
        first = pid_of(client)
        client.prove(circuit, **options)
        assert eventually(lambda: only(client).memory.rss == 100 << 20)
        assert pid_of(client) == first
        client.prove(circuit, **options)
        eventually(lambda: pid_of(client) != first)
        assert only(client).restarts == 0


def test_there_are_as_many_workers_as_there_is_work(stub: Callable[[str], None]) -> None:
    stub("")
    with running(min_workers=0, max_workers=2, idle_timeout=0.5) as client:
        eventually(lambda: client.pool.devices)
        eventually(lambda: client.pool.workers() == [])
        assert client.key("/any").path == "/any"
        waits, options = stub_key("waits")
        asked = [client.ask(waits, **options) for _ in range(3)]
        eventually(lambda: [w.jobs for w in client.pool.workers()] == [(asked[0],), (asked[1],)])
        assert [w.name for w in client.pool.workers()] == ["cpu-0", "cpu-1"]
        client.pool.cancel(asked[2])
        assert isinstance(client.answer(asked[2]), Cancelled)
        for worker in client.pool.workers():
            os.kill(worker.pid, signal.SIGKILL)
        for number in asked[:2]:
            assert isinstance(client.answer(number), Lost)
        eventually(lambda: client.pool.workers() == [])
        any_, _ = stub_key("any")
        client.prove(any_, **options)
        assert [w.name for w in client.pool.workers()] == ["cpu-0"]


@pytest.mark.parametrize(
    ("how", "problem"),
    [
        ("crash", "ended with status 1: the stub crashes on purpose"),
        ("hang", "its start did not go on for 0.2 s"),
        ("babble", "it said what no worker says"),
    ],
)
def test_a_start_that_fails_has_an_end(stub: Callable[[str], None], how: str, problem: str) -> None:
    stub(how)
    with running(init_timeout=0.2 if how == "hang" else 60) as client:
        circuit, options = stub_key("any")
        answer = client.answer(client.ask(circuit, **options))
        assert isinstance(answer, DeviceError)
        assert answer.message.endswith(problem)


def test_a_worker_dies_of_looking_for_gpus(stub: Callable[[str], None]) -> None:
    stub("no survey")
    with running(gpus=None) as client:
        circuit, options = stub_key("any")
        client.prove(circuit, **options)
        assert [d.name for d in eventually(lambda: client.pool.devices)] == ["cpu"]


def test_an_answer_that_comes_late_or_twice_is_dropped(stub: Callable[[str], None]) -> None:
    stub("")
    with running(response_time=0.1) as client:
        twice, options = stub_key("twice")
        first = client.ask(twice, **options)
        client.proof(first)
        late, options = stub_key("late")
        number = client.ask(late, **options)
        busy(client)
        client.pool.cancel(number)
        assert isinstance(client.answer(number), Cancelled)
        waits, _ = stub_key("waits")
        number = client.ask(waits, **options)
        pid = busy(client)
        client.pool.cancel(number)
        os.kill(pid, signal.SIGKILL)
        assert isinstance(client.answer(number), Cancelled), "not lost: nobody wants it again"
        client.prove(twice, **options)
        assert {len(answers) for answers in client.answers.values()} == {1}


def test_a_worker_that_does_nothing_about_a_proof_is_replaced(stub: Callable[[str], None]) -> None:
    stub("")
    with running(stall_timeout=0.5) as client:
        circuit, options = stub_key("waits")
        answer = client.answer(client.ask(circuit, **options))
        assert isinstance(answer, Lost)
        assert str(answer) == "cpu-0: it neither computed nor reported anything for 0.5 s"


def test_a_key_that_kills_workers_is_lost_in_the_end(stub: Callable[[str], None]) -> None:
    stub("")
    with running() as client:
        assert isinstance(client.load("/dies"), Lost)
        assert client.key("/lives").path == "/lives"


def test_each_gpu_has_one_process(stub: Callable[[str], None]) -> None:
    stub("gpus")
    with running(gpus=None, gpu_proofs=2) as client:
        found = {d.name: d for d in eventually(lambda: client.pool.devices)}
        assert set(found) == {"cpu", "cuda:0", "cuda:1", "cuda:2"}
        assert found["cuda:0"].proofs == 2
        assert found["cuda:2"].problem == "it is broken"
        info = client.key("/any", pin=True)
        assert set(info.plans) == {"cpu", "cuda"}
        # Several run there at once; those of the other GPU are elsewhere.
        waits, options = stub_key("waits", "cuda:0")
        asked = [client.ask(waits, **options) for _ in range(3)]
        on = eventually(lambda: [w for w in client.pool.workers() if w.jobs == tuple(asked)])
        assert on[0].name == "cuda:0"
        any_, elsewhere = stub_key("any", "cuda:1")
        assert client.prove(any_, **elsewhere).device == "cuda:1"
        assert not any(client.answers[number] for number in asked)
        os.kill(on[0].pid, signal.SIGKILL)
        assert {type(client.answer(number)) for number in asked} == {Lost}
        assert client.prove(any_, **options).device == "cuda:0"
        answer = client.answer(client.ask(any_, device="cuda:2"))
        assert isinstance(answer, DeviceError)
        # What had to look for GPUs holds what that takes, and has been replaced.
        eventually(lambda: [w.state for w in client.pool.workers()] == ["idle"] * 3)
        assert sum(w.restarts for w in client.pool.workers()) == 1


def test_gpus_are_chosen(stub: Callable[[str], None]) -> None:
    stub("gpus")
    with running(gpus=("cuda:1",)) as client:
        assert [d.name for d in eventually(lambda: client.pool.devices)] == ["cpu", "cuda:1"]
        eventually(lambda: {w.name for w in client.pool.workers()} == {"cpu-0", "cuda:1"})
        circuit, options = stub_key("any", "cuda:0")
        answer = client.answer(client.ask(circuit, **options))
        assert isinstance(answer, DeviceError)
        assert answer.message == "device 'cuda:0': there are no workers for it"


@pytest.mark.parametrize(
    ("how", "answer"), [("breaks", DeviceError), pytest.param("kills", Lost, marks=pytest.mark.slow)]
)
def test_a_gpu_that_fails_gets_new_processes_rests_and_is_tried_again(
    stub: Callable[[str], None], how: str, answer: type
) -> None:
    stub("gpus")
    with running(gpus=("cuda:0",), rest=(1000.0, 2.0, 1e6, 0.0)) as client:
        fails, options = stub_key(how, "cuda:0")
        works, _ = stub_key("any", "cuda:0")
        waits, _ = stub_key("waits", "cuda:0")

        def gpu() -> tuple[str, str, int]:
            (found,) = [w for w in client.pool.workers() if w.device == "cuda:0"]
            return found.state, found.problem, found.restarts

        for circuit in (fails, works, fails):
            client.answer(client.ask(circuit, **options))
        # All that ran beside each other fail: that is one failure.
        beside = [client.ask(waits, **options) for _ in range(slots.DEVICE_TRIES)]
        asked = client.ask(fails, **options)
        assert {type(client.answer(number)) for number in (*beside, asked)} == {answer}
        eventually(lambda: gpu()[2] == 3)
        assert client.prove(works, **options).device == "cuda:0"
        for _ in range(slots.DEVICE_TRIES):
            assert isinstance(client.answer(client.ask(fails, **options)), answer)
        told = "an illegal address" if how == "breaks" else "the process ended with status 1"
        problems = eventually(lambda: {d.name: d.problem for d in client.pool.devices if d.problem})
        assert problems == {"cuda:0": told}
        refused = client.answer(client.ask(works, **options))
        assert isinstance(refused, DeviceError)
        assert refused.message == f"device 'cuda:0': {told}"
        eventually(lambda: gpu()[:2] == ("waiting", told))
        # It is tried after a while. One more failure is enough then, and it rests for longer.
        (slot,) = [slot for slot in client.pool._slots if slot.device == "cuda:0"]
        for seconds in (1000, 2000):
            assert seconds - 300 < slot.again - time.monotonic() < seconds
            slot.again = 0.0
            eventually(lambda: not any(d.problem for d in client.pool.devices))
            assert isinstance(client.answer(client.ask(fails, **options)), answer)
            eventually(lambda: any(d.problem for d in client.pool.devices))
        slot.again = 0.0
        eventually(lambda: not any(d.problem for d in client.pool.devices))
        assert client.prove(works, **options).device == "cuda:0"
        assert client.pool.problem == ""


def test_what_replaces_a_worker_on_a_gpu_finds_its_memory_free(stub: Callable[[str], None]) -> None:
    stub("gpus")
    with running(gpus=("cuda:0",), max_proofs_per_worker=2) as client:
        works, options = stub_key("any", "cuda:0")
        seen = set()
        for _ in range(6):
            client.prove(works, **options)
            seen |= {slot.successor for slot in client.pool._slots if slot.device != "cpu"}
        assert seen == {None}
        eventually(lambda: [w.recycled for w in client.pool.workers() if w.device == "cuda:0"] == [3])
        assert sum(w.restarts for w in client.pool.workers()) == 0


# The end ------------------------------------------------------------------------------------------------


def test_a_pool_that_closes_ends_what_runs_and_tells_the_rest(longest: Circuit) -> None:
    with running() as client:
        client.key(longest.zkey)
        first, second = client.ask(longest), client.ask(longest)
        busy(client)
        client.pool.close(60)
        assert isinstance(client.answer(first), ProofResult)
        assert isinstance(client.answer(second), Lost)
        assert isinstance(client.answer(client.ask(longest)), ShuttingDown)
        assert isinstance(client.load(longest.zkey), ShuttingDown)
        client.pool.close(0)


def test_a_pool_that_closes_at_once_loses_what_runs(longest: Circuit) -> None:
    with running() as client:
        client.key(longest.zkey)
        number = client.ask(longest)
        busy(client)
        begun = time.monotonic()
        client.pool.close(0)
        assert isinstance(client.answer(number), Lost)
        assert time.monotonic() - begun < slots.KILLED_SECONDS


def test_a_pool_that_never_started_can_be_closed(short: Circuit) -> None:
    idle = WorkerPool(PoolSettings(gpus=()))
    client = Client(idle)
    number = client.ask(short)
    idle.close(1)
    assert isinstance(client.answer(number), ShuttingDown)
    with pytest.raises(RuntimeError):
        idle.start(lambda: None)


# Programs without a guard ---------------------------------------------------------------------------------

PROGRAM = """
import json, sys, threading
from gpuprover.executor import ProofRequest
from gpuprover.formats.files import identity_of
from gpuprover.witness_source import looked_at
from gpuprover.workers import PoolSettings, WorkerPool
zkey, wtns = {zkey!r}, looked_at({wtns!r})
print("imported", flush=True)
pool = WorkerPool(PoolSettings(gpus=()))
pool.start(lambda: None)
answers, answered = [], threading.Event()
pool.prove(ProofRequest(1, zkey, identity_of(zkey), wtns), lambda _, a: (answers.append(a), answered.set()))
_ = answered.wait(100)
pids = [w.pid for w in pool.workers()]
heavy = sorted({{"numba", "llvmlite", "cupy", "wasmtime"}} & set(sys.modules))
print(json.dumps([answers[0].proof, answers[0].public_signals, pids, heavy]), flush=True)
{end}
"""
NOTEBOOK = """
import code, sys
cells = sys.argv[1]
shell = code.InteractiveInterpreter({"__name__": "__main__"})
shell.runsource(open(cells).read(), "<cell>", "exec")
"""


@pytest.mark.parametrize("how", ["script", "standard input", "notebook"])
def test_a_program_needs_no_guard(short: Circuit, tmp_path: Path, how: str) -> None:
    # One of them forgets to close.
    program = PROGRAM.format(zkey=short.zkey, wtns=short.wtns, end="pool.close(5)" if how == "script" else "")
    (tmp_path / "program.py").write_text(program)
    command = {
        "script": [sys.executable, "program.py"],
        "standard input": [sys.executable, "-"],
        "notebook": [sys.executable, "-c", NOTEBOOK, "program.py"],
    }[how]
    given = program if how == "standard input" else ""
    ran = subprocess.run(
        command, input=given, capture_output=True, text=True, cwd=tmp_path, timeout=SECONDS, check=False
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    first, last = ran.stdout.splitlines()
    assert first == "imported"
    proof, signals, pids, heavy = json.loads(last)
    assert gpuprover.verify(short.info.verification_key, signals, proof)
    assert heavy == []
    assert len(pids) == 1
    eventually(lambda: all(is_gone(pid) for pid in pids))


def test_workers_outlive_ctrl_c_and_die_with_the_program(short: Circuit, tmp_path: Path) -> None:
    end = "import signal, time; signal.signal(signal.SIGINT, lambda *_: print('interrupted', flush=True))\n"
    program = PROGRAM.format(zkey=short.zkey, wtns=short.wtns, end=end + "while True: time.sleep(0.1)")
    with subprocess.Popen(
        [sys.executable, "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as front:
        assert front.stdin is not None
        assert front.stdout is not None
        front.stdin.write(program)
        front.stdin.close()
        front.stdout.readline()
        (pid,) = json.loads(front.stdout.readline())[2]
        time.sleep(0.2)
        os.killpg(front.pid, signal.SIGINT)
        assert front.stdout.readline() == "interrupted\n"
        assert not is_gone(pid)
        front.kill()
    eventually(lambda: is_gone(pid))
