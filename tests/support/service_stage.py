"""A service on a stage: the real engine over an executor that does what a witness says, a real server."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import httpx

from gpuprover.config import load_engine_settings, load_service_settings
from gpuprover.demand import MemoryPlan
from gpuprover.engine import Prover
from gpuprover.errors import DeviceError, ProverError, UnsatisfiedWitness
from gpuprover.executor import Done, KeyInfo, Lost, ProofRequest
from gpuprover.job import Progress
from gpuprover.proving import ProofResult
from gpuprover.runner import Runner
from gpuprover.service import server
from gpuprover.service.app import create_app
from gpuprover.service.connections import Connections
from gpuprover.service.core import MakeMetrics, Service
from gpuprover.service.metrics import Metrics
from gpuprover.witness_source import WitnessBytes, WitnessInputs
from tests.support.engine_stage import FakeExecutor, FakeTimes, cpu
from tests.support.paths import VECTORS

T = TypeVar("T")

CHAIN = VECTORS / "chain5.bn254"
SECONDS = 30
"""For what happens soon."""

SUCCEED, SLOW, WRONG, LARGE = b"succeed", b"slow", b"wrong", b"large"
"""Witnesses: proved at once; when the test says so; not satisfying; with 100,000 public signals."""
LOST = b"lost"
"""A witness under which the service fails."""


def proof(signals: list[str] | None = None) -> ProofResult:
    return ProofResult(
        proof={
            "pi_a": ["1", "2", "1"],
            "pi_b": [["1", "2"], ["3", "4"], ["1", "0"]],
            "pi_c": ["5", "6", "1"],
            "protocol": "groth16",
            "curve": "bn128",
        },
        public_signals=["33"] if signals is None else signals,
        timings={"msm": 0.25, "quotient": 0.5},
        device="cpu",
        memory={"before": 1, "peak": 2, "after": 1},
    )


class Executor(FakeExecutor):
    """Ends by itself what is not SLOW; and that, once it is cancelled."""

    def __init__(self) -> None:
        super().__init__(cpu(proofs=64))
        self.lock = threading.RLock()

    def info(self, path: str) -> KeyInfo:
        return replace(Runner().load(path), plans={"cpu": (MemoryPlan(0, 0, 1 << 20, 0),)})

    def prove(
        self, request: ProofRequest, done: Done, progress: Callable[[Progress], None] | None = None
    ) -> None:
        outcomes: dict[bytes, ProofResult | ProverError] = {
            SUCCEED: proof(),
            WRONG: UnsatisfiedWitness("the witness does not satisfy the circuit"),
            LARGE: proof(["7" * 77] * 100_000),
            LOST: DeviceError("cannot read: Input/output error", path="/keys/chain.zkey", role="key"),
        }
        with self.lock:
            super().prove(request, done, progress)
            run = self.runs[-1]
        assert isinstance(request.witness, WitnessBytes | WitnessInputs)
        if request.witness != WitnessBytes(SLOW):
            content = request.witness.content if isinstance(request.witness, WitnessBytes) else SUCCEED
            self.end(run, outcomes.get(bytes(content), outcomes[SUCCEED]))

    def end(self, run: Any, outcome: ProofResult | ProverError | Lost | None = None) -> None:
        with self.lock:
            self.runs.remove(run)
        run.done(run.request, proof() if outcome is None else outcome)

    def cancel(self, request_id: int) -> None:
        with self.lock:
            super().cancel(request_id)
            self.end_cancelled()

    def end_all(self) -> None:
        """What is slow is done."""
        with self.lock:
            runs = list(self.runs)
        for run in runs:
            self.end(run)


class Stage:
    """A service that listens, in a thread.

    Attributes:
        url: its address.
        client: for requests, with a generous time limit.
        loop: of the service.
        server: what listens.
        app: the application.
    """

    loop: asyncio.AbstractEventLoop
    server: Any
    app: Any

    def __init__(self, prover: Prover, executor: Executor | None, service: Service, url: str) -> None:
        self.prover, self.service, self.url = prover, service, url
        self._executor = executor
        self.client = httpx.Client(base_url=url, timeout=SECONDS, trust_env=False)

    @property
    def executor(self) -> Executor:
        assert self._executor is not None
        return self._executor

    def on_loop(self, work: Coroutine[Any, Any, T]) -> T:
        """What it returns, run in the loop of the service."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(SECONDS)

    def post(self, witness: bytes = SUCCEED, circuit: str = "chain", **options: Any) -> httpx.Response:
        wait = options.pop("wait", None)
        headers = {"Content-Type": "application/octet-stream", **options.pop("headers", {})}
        if wait is not None:
            headers["Prefer"] = f"wait={wait}"
        path = f"/v1/circuits/{circuit}/proofs"
        return self.client.post(path, content=witness, headers=headers, **options)

    def connections(self) -> Connections:
        """Those that are open."""
        return self.server._connections

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.client.get(path, **options)


def circuits(folder: Path) -> Path:
    """``chain``, with a key, a verification key and something in place of a program; ``checked``, which has
    no key."""
    folder.mkdir(exist_ok=True)
    for suffix in (".zkey", ".vkey.json"):
        shutil.copy(f"{CHAIN}{suffix}", folder / f"chain{suffix}")
    (folder / "chain.wasm").write_bytes(b"\0asm")
    shutil.copy(f"{CHAIN}.vkey.json", folder / "checked.vkey.json")
    return folder


@contextmanager
def stage(
    folder: Path,
    *,
    executor: Executor | None = None,
    prover: Prover | None = None,
    metrics: MakeMetrics = Metrics,
    settings: dict[str, Any] | None = None,
    **engine: Any,
) -> Iterator[Stage]:
    """A service over the engine; with ``prover``, over that one."""
    if prover is None:
        executor = executor or Executor()
        given = {"memory_limit": 4096, "threads": 64, "verifier": "inline", "grace_period": 20} | engine
        engine_settings = load_engine_settings({"circuit_keys_path": circuits(folder), **given}, {})
        prover = Prover(engine_settings, executor=executor, times=FakeTimes())
    service_settings = load_service_settings({"port": 0, **(settings or {})}, prover.settings, {})
    listener = server.listen("127.0.0.1", 0)
    app = create_app(prover, service_settings, metrics)
    on_stage = Stage(prover, executor, app.state.service, server.url_of(listener))
    on_stage.app = app
    up, stop = threading.Event(), threading.Event()

    async def main() -> None:
        on_stage.loop = asyncio.get_running_loop()
        on_stage.loop.set_exception_handler(server._log_place)
        async with server.running(app, listener) as on_stage.server:
            up.set()
            while not stop.is_set():
                await asyncio.sleep(0.02)

    thread = threading.Thread(target=lambda: asyncio.run(main()), name="service")
    thread.start()
    try:
        assert up.wait(SECONDS)
        yield on_stage
    finally:
        on_stage.client.close()
        stop.set()
        thread.join(SECONDS)
        assert not thread.is_alive(), "the service did not end"
        prover.close(0.0)
