"""The prover: circuits by name, a bounded queue, proofs on whatever device is best, verification."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from gpuprover import calibration, memory
from gpuprover.caching import CacheStatistics
from gpuprover.config import EngineSettings, load_engine_settings, unknown_variables
from gpuprover.curves import CurveParams, curve_by_name
from gpuprover.devices import is_gpu
from gpuprover.engine.directory import CircuitDirectory, CircuitFiles, KnownKey, curve_label
from gpuprover.engine.dispatch import Dispatcher
from gpuprover.engine.driver import Driver
from gpuprover.engine.local import LocalExecutor
from gpuprover.engine.proof_job import ProofJob, require_process, seconds
from gpuprover.engine.status import CircuitKind, ProverStatus
from gpuprover.engine.terms import Terms
from gpuprover.engine.verification import Document, Signals, Statement, Verification
from gpuprover.errors import (
    CircuitNotFound,
    DeviceError,
    InvalidInput,
    ProverError,
    ShuttingDown,
    Timeout,
    shortage,
)
from gpuprover.executor import Executor, KeyInfo
from gpuprover.job import Progress
from gpuprover.memory import MIB
from gpuprover.proving import ProofResult
from gpuprover.scheduler import DeviceInfo, Times
from gpuprover.systems.system import read_curve
from gpuprover.witness_source import InputsForm, WitnessLike, WitnessSource, looked_at
from gpuprover.workers import PoolSettings, WorkerPool

log = logging.getLogger("gpuprover.engine")

READY_POLL_SECONDS = 0.02
VERIFIER_BYTES = 144 << 20
"""Bytes of the memory limit that are set aside for a verifier process; it held 132 MiB of its own after 300
verifications, measured by hand."""


def create_prover(*, wait: bool = True, **settings: Any) -> Prover:
    """A prover for the circuits of a folder, ready: the circuits to preload are loaded.

    Args:
        wait: wait for that, up to ``load_timeout`` seconds. Without, it returns at once, and
            :meth:`Prover.wait_ready` waits. With the policy ``lazy`` or ``off`` there is nothing to wait for.
        settings: those of :class:`gpuprover.config.EngineSettings`, by name: ``circuit_keys_path``,
            ``memory_limit`` (MiB), ``threads``, ``preload_circuits``, ``policy``, ... What is not given, or
            None, comes from the environment (``PROVER_*``), and else from the machine; ``gpuprover config``
            prints all of them.

    Raises:
        InvalidInput: there is no such setting, or a value cannot be used.
        CircuitNotFound: a circuit to preload is not in the folder.
        MalformedFile, UnsupportedFile, OutOfMemory: a circuit to preload cannot be used; or
        DeviceError, ProofGenerationFailed: no worker starts, or the key's load kills them.
        Timeout: it is not ready in that time.
    """
    for line in unknown_variables().values():
        log.warning(line)
    prover = Prover(load_engine_settings(settings))
    if wait:
        try:
            prover.wait_ready(prover.settings.load_timeout)
        except BaseException:
            prover.close(0.0)
            raise
    return prover


async def acreate_prover(*, wait: bool = True, **settings: Any) -> Prover:
    """:func:`create_prover` for tasks. A task that is cancelled meanwhile leaves no prover behind."""
    prover = await asyncio.to_thread(partial(create_prover, wait=False, **settings))
    if wait:
        try:
            await asyncio.to_thread(prover.wait_ready, prover.settings.load_timeout)
        except BaseException:
            await asyncio.shield(prover.aclose(0.0))
            raise
    return prover


class Prover:
    """Makes and verifies proofs for the circuits of a folder; :func:`create_prover` makes one.

    Any number of threads and tasks may use it. Proofs are made in worker processes, and this one imports no
    compiler and maps no key; or, with ``max_workers=0``, in threads of this one.

    The death of a worker or of the verifier loses no job: it is made again. The death of this process loses
    the queue, and what runs.

    It belongs to the process that made it: in one that was forked from that every method raises ShuttingDown
    at once, and :meth:`close` does nothing.

    As a context manager it is closed at the end of the block: what still waits is aborted, what runs has
    ``grace_period`` seconds; after an exception nothing is waited for. :meth:`drain` waits for all answers.

    Attributes:
        settings: the prover's settings, with the origin of each.
    """

    def __init__(
        self,
        settings: EngineSettings,
        *,
        executor: Executor | None = None,
        times: Times | None = None,
        dispatcher: Callable[..., Dispatcher] = Dispatcher,
    ) -> None:
        self.settings = settings
        self._directory = CircuitDirectory(settings.circuit_keys_path)
        self._directory.survey()
        preload = [self._provable(name) for name in settings.preload_circuits if settings.policy != "off"]
        self._verification = Verification(settings, self._directory)
        proving = replace(settings, memory_limit=_limit_of_proving(settings))
        self._executor = executor if executor is not None else _executor(proving)
        self._dispatcher = dispatcher(
            self._executor,
            proving,
            times if times is not None else calibration.load(log.warning),
            check=_checker(self._directory),
            relief=partial(_relieve, self._verification),
            preload=preload,
        )
        self._driver = Driver(self._executor, self._dispatcher, self._verification)
        self._finalizer = weakref.finalize(self, self._driver.abandon)
        self._finalizer.atexit = False
        if settings.policy != "off":
            self._driver.run()
        if settings.policy == "eager":
            self._dispatcher.start()

    # Proofs ----------------------------------------------------------------------------

    def prove(
        self,
        circuit: str,
        witness: WitnessLike,
        *,
        timeout: float | None = None,
        priority: int = 0,
        queue: str = "wait",
        tenant: str = "",
        progress: Callable[[Progress], None] | None = None,
    ) -> ProofResult:
        """A proof, verified.

        Args:
            circuit: its name in the folder.
            witness: as for :func:`gpuprover.prove`; ``{"inputs": {...}}`` does, with ``NAME.wasm`` beside the
                key. Not to be changed before the proof is made.
            timeout: seconds from now on, waiting included; default ``job_timeout``.
            priority: -1000 to 1000; a higher one goes first among those of its tenant, until another has
                waited for ``overtaking_limit`` seconds.
            queue: when it is full, ``wait`` for a place, or ``refuse``.
            tenant: for whom it is made, a text of at most 256 characters that is told to nobody. Tenants have
                the same share of proving, whatever priorities they use, and each at most
                ``tenant_queue_limit`` places in the queue; none (``""``) has a share too, and all places.
            progress: called now and then, from another thread.

        Raises:
            CircuitNotFound: no such circuit.
            QueueFull: there is no place, or none for this tenant, and ``queue`` says not to wait for one.
            Timeout: the time is over, whether it waited or ran.
            Aborted: the prover was closed.
            ShuttingDown: it was closed or drained before.
            OutOfMemory: the proof does not fit the memory limit, in any way that there is.
            ProofGenerationFailed: what made it died three times.
            ProverError: what :func:`gpuprover.prove` raises for this key and witness.
        """
        job = self._submit(circuit, witness, self._terms(timeout, priority, queue, tenant, progress))
        try:
            return job.wait()
        finally:
            job.cancel()  # Ctrl-C; nothing is left to cancel otherwise

    async def aprove(
        self,
        circuit: str,
        witness: WitnessLike,
        *,
        timeout: float | None = None,
        priority: int = 0,
        queue: str = "wait",
        tenant: str = "",
        progress: Callable[[Progress], None] | None = None,
    ) -> ProofResult:
        """:meth:`prove` for tasks. A task that is cancelled cancels the proof."""
        job = await self._asubmit(circuit, witness, self._terms(timeout, priority, queue, tenant, progress))
        try:
            return await job
        finally:
            job.cancel()

    def submit(
        self,
        circuit: str,
        witness: WitnessLike,
        *,
        timeout: float | None = None,
        priority: int = 0,
        queue: str = "wait",
        tenant: str = "",
        progress: Callable[[Progress], None] | None = None,
    ) -> ProofJob:
        """:meth:`prove` without waiting for the proof, but, unless told otherwise, for a place in the queue.

        Raises:
            those errors of :meth:`prove` that are known before the proof is made; others are the job's.
        """
        return self._submit(circuit, witness, self._terms(timeout, priority, queue, tenant, progress))

    async def asubmit(
        self,
        circuit: str,
        witness: WitnessLike,
        *,
        timeout: float | None = None,
        priority: int = 0,
        queue: str = "wait",
        tenant: str = "",
        progress: Callable[[Progress], None] | None = None,
    ) -> ProofJob:
        """:meth:`submit` for tasks."""
        return await self._asubmit(circuit, witness, self._terms(timeout, priority, queue, tenant, progress))

    def _here(self) -> None:
        require_process(self._driver.pid)

    def _terms(
        self,
        timeout: float | None,
        priority: int,
        queue: str,
        tenant: str,
        progress: Callable[[Progress], None] | None,
    ) -> Terms:
        self._here()
        if self.settings.policy == "off":
            raise InvalidInput("this prover only verifies (policy off)")
        timeout = self.settings.job_timeout if timeout is None else timeout
        return Terms.checked(timeout, priority, queue, tenant, progress)

    def _submit(self, circuit: str, witness: WitnessLike, terms: Terms) -> ProofJob:
        self._dispatcher.entrance.take_seat(terms.wait, terms.left, terms.tenant)
        return self._submit_seated(circuit, witness, terms)

    async def _asubmit(self, circuit: str, witness: WitnessLike, terms: Terms) -> ProofJob:
        await self._dispatcher.entrance.atake_seat(terms.wait, terms.left, terms.tenant)
        # Files are looked up, and witnesses are converted.
        begun = threading.Event()

        def submit() -> ProofJob:
            begun.set()
            return self._submit_seated(circuit, witness, terms)

        async def submitted() -> ProofJob:
            try:
                return await asyncio.to_thread(submit)
            except BaseException as error:
                if not begun.is_set():  # no thread for it: the seat is here still
                    self._dispatcher.seats.release(terms.tenant)
                raise (shortage(error) or error) from None

        submission = asyncio.ensure_future(submitted())
        try:
            return await asyncio.shield(submission)
        except asyncio.CancelledError:
            submission.add_done_callback(_cancel_submitted)
            raise

    def _submit_seated(self, circuit: str, witness: WitnessLike, terms: Terms) -> ProofJob:
        """Submits what has a seat in the queue, or gives the seat back."""
        try:
            files = self._provable(circuit)
            ready, content = self._witness(files, witness)
            job = ProofJob(files.name, terms.priority, terms.progress, owner=self)
            self._dispatcher.submit(job, files, ready, terms.left, content, terms.tenant)
        except BaseException:
            self._dispatcher.seats.release(terms.tenant)
            raise
        return job

    def _provable(self, circuit: str) -> CircuitFiles:
        files = self._directory.find(circuit)
        if files.key is None:
            raise CircuitNotFound(
                f"circuit {circuit!r} can be verified only: it has no key", more=f"but {files.vkey}"
            )
        return files

    def _witness(self, files: CircuitFiles, given: WitnessLike) -> tuple[WitnessSource, bytes | None]:
        """A witness as it waits and travels, and its digest, where proofs are kept."""
        keeps = self.settings.proof_cache > 0
        witness = looked_at(given, InputsForm.ENGINE, circuit=files.name, program=files.wasm)
        witness = witness.owned(partial(self._curve, files), content=keeps)
        return witness, witness.digest() if keeps else None

    def _curve(self, files: CircuitFiles) -> CurveParams:
        info = self._dispatcher.info(files)
        if info is not None:
            return curve_by_name(info.curve)
        assert files.key is not None
        return read_curve(files.key)

    # Verification ----------------------------------------------------------------------

    def verify(
        self, circuit: str, public_signals: Signals, proof: Document, *, timeout: float | None = None
    ) -> bool:
        """Whether a proof for a circuit holds; public signals and proof are documents, or paths of such.

        Raises:
            CircuitNotFound: no such circuit.
            MalformedFile, UnsupportedFile, InvalidInput: a document or a file of the circuit is damaged.
            Timeout, ShuttingDown: see the messages.
        """
        self._here()
        return self._verification.verify(circuit, public_signals, proof, _optional(timeout))

    def verify_batch(
        self, circuit: str, statements: Sequence[Statement], *, timeout: float | None = None
    ) -> list[bool]:
        """For each (public signals, proof) whether it holds; a damaged one is False.

        Raises:
            as :meth:`verify`, but for damaged documents.
        """
        self._here()
        try:
            listed = list(statements)
        except TypeError:
            problem = f"expected a list of pairs, found {type(statements).__name__}"
            raise InvalidInput(f"statements: {problem}") from None
        for i, pair in enumerate(listed):
            if not isinstance(pair, list | tuple) or len(pair) != 2:
                raise InvalidInput(f"statement {i}: expected public signals and a proof")
        return self._verification.verify_batch(circuit, listed, _optional(timeout))

    async def averify(
        self, circuit: str, public_signals: Signals, proof: Document, *, timeout: float | None = None
    ) -> bool:
        """:meth:`verify` for tasks."""
        return await asyncio.to_thread(self.verify, circuit, public_signals, proof, timeout=timeout)

    async def averify_batch(
        self, circuit: str, statements: Sequence[Statement], *, timeout: float | None = None
    ) -> list[bool]:
        """:meth:`verify_batch` for tasks."""
        return await asyncio.to_thread(self.verify_batch, circuit, statements, timeout=timeout)

    def verification_key(self, circuit: str) -> dict[str, Any]:
        """The document of a circuit's verification key, without what no verifier needs: e(α, β) in snarkjs's.

        Raises:
            as :meth:`verify`.
        """
        return dict(self.known_key(circuit).document)

    def known_key(self, circuit: str) -> KnownKey:
        """What a circuit's verification key says, as its files are now.

        Raises:
            as :meth:`verify`.
        """
        self._here()
        return self._verification.key(circuit)

    # Circuits --------------------------------------------------------------------------

    def circuits(self) -> list[str]:
        """Names of the circuits that are in the folder now."""
        self._here()
        return self._directory.names()

    def has_circuit(self, circuit: str) -> bool:
        """Whether one of that name is in the folder now."""
        self._here()
        return self._directory.has(circuit)

    def look_in(self, folder: Path) -> None:
        """Proves for circuits of another folder, too, whose names are listed nowhere: for keys that clients
        bring, by names that nobody guesses."""
        self._here()
        self._directory.look_in(folder)

    def known_circuits(self) -> dict[str, CircuitKind]:
        """Proof system and curve of each circuit whose key is loaded or was read, by name; reads no file."""
        self._here()
        read = self._directory.known()
        found = {name: CircuitKind(key.protocol, key.curve) for name, key in read.items()}
        for name, info in self._dispatcher.keys().items():
            found[name] = CircuitKind(info.protocol, curve_label(curve_by_name(info.curve)))
        return found

    def load(self, circuit: str, *, pin: bool = False, timeout: float | None = None) -> KeyInfo:
        """Loads a circuit's key where proofs are made, if it is not; ``pin``: it stays until :meth:`unload`.

        Args:
            timeout: seconds; default ``load_timeout``.

        Raises:
            CircuitNotFound, InvalidInput, MalformedFile, UnsupportedFile, OutOfMemory: it cannot be used.
            Timeout: it takes longer, and goes on.
        """
        self._here()
        if self.settings.policy == "off":
            raise InvalidInput("this prover only verifies (policy off)")
        timeout = self.settings.load_timeout if timeout is None else seconds(timeout, "timeout")
        if not isinstance(pin, bool):
            raise InvalidInput(f"pin: expected True or False, found {type(pin).__name__}")
        ended = threading.Event()
        answers: list[KeyInfo | ProverError] = []

        def loaded(answer: KeyInfo | ProverError) -> None:
            answers.append(answer)
            ended.set()

        self._dispatcher.load(self._provable(circuit), pin, loaded)
        if not ended.wait(timeout):
            raise Timeout(f"circuit {circuit!r} is not loaded after {timeout} s; its load goes on")
        if isinstance(answers[0], ProverError):
            raise answers[0].with_traceback(None)
        return answers[0]

    def unload(self, circuit: str) -> bool:
        """Lets a circuit's key go -> whether it was loaded. The next proof loads it again."""
        self._here()
        if not isinstance(circuit, str):
            raise InvalidInput(f"circuit: expected a name, found {type(circuit).__name__}")
        return self._dispatcher.unload(circuit)

    # Life ------------------------------------------------------------------------------

    def observe(self, callback: Callable[[ProofJob], None]) -> None:
        """Has ``callback(job)`` called for every job that ends from now on, from a thread of the prover.

        As :meth:`ProofJob.add_done_callback` calls it, and before those.
        """
        self._here()
        if not callable(callback):
            raise InvalidInput(f"callback: expected a function, found {type(callback).__name__}")
        self._dispatcher.observers.append(callback)

    def share_queue(self, share: float) -> None:
        """Bounds what one tenant may have of the queue, besides ``tenant_queue_limit``, from now on.

        Whoever does not wait for a place gets one only while its tenant's are fewer than ``share / (1 -
        share)`` of the free ones: at a half, n greedy tenants get equal parts, and one place stays free.

        Args:
            share: above 0, at most 1, with which ``tenant_queue_limit`` alone counts, as at first.

        Raises:
            InvalidInput: it is no such number.
        """
        self._here()
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
            raise InvalidInput(f"share: expected a number above 0, at most 1, found {share!r}")
        self._dispatcher.seats.share = float(share)

    def get_status(self) -> ProverStatus:
        """The prover's state now; starts nothing."""
        self._here()
        found, policy = self._dispatcher.snapshot(), self.settings.policy
        workers = tuple(self._executor.workers()) if found.started else ()
        problem = self._driver.problem or (self._executor.problem if found.started else "")
        verifier = self._verification.status()
        serving = self._serving([device for device, _ in found.devices])
        usable = any(not device.problem for device in serving)
        up = usable and found.preloaded if policy == "eager" else usable or not found.devices
        ill = [f"{worker.name}: {worker.problem}" for worker in workers if worker.problem]
        ill += [problem] if problem and problem not in ill else []
        if verifier.problem is not None:
            ill.append(f"verifier: {verifier.problem}")
        return ProverStatus(
            ready=found.accepting and up and not problem and verifier.problem is None,
            policy=policy,
            active_jobs=found.running,
            queued_jobs=found.queued,
            memory_usage=found.held + (verifier.memory.get("private") or 0),
            memory_limit=self.settings.memory_limit * MIB,
            loaded_circuits=found.loaded,
            problems=(*found.problems, *ill),
            warnings=self._directory.warnings(),
            devices=tuple({**asdict(device), "running": running} for device, running in found.devices),
            pools={
                worker.name: worker.memory.gpu_pool
                for worker in workers
                if worker.memory is not None and worker.memory.gpu_pool
            },
            workers=workers,
            caches={
                "keys": self._executor.keys() if found.started else CacheStatistics.total(()),
                "proofs": self._dispatcher.proofs.statistics,
                "verifications": self._verification.answers.statistics,
            },
            counters=found.counters,
            verifier=verifier,
        )

    def _serving(self, devices: list[DeviceInfo]) -> list[DeviceInfo]:
        """Devices that proofs may be placed on: a GPU that was asked for by name has no substitute."""
        named = is_gpu(self.settings.device)
        return [device for device in devices if not named or device.kind != "cpu"]

    def wait_ready(self, timeout: float) -> None:
        """Waits until it is ready.

        Raises:
            Timeout: it is not, after so many seconds.
            ShuttingDown: it is closed.
            DeviceError: there is nothing to prove on.
            ProverError: a circuit to preload cannot be loaded.
        """
        self._here()
        end = time.monotonic() + seconds(timeout, "timeout")
        while True:
            found = self._dispatcher.snapshot()
            if not found.accepting:
                raise ShuttingDown("the prover is closed")
            for error in found.failures:
                raise error.with_traceback(None)
            if self.settings.policy != "eager":
                return
            devices = [device for device, _ in found.devices]
            serving = self._serving(devices)
            if devices and all(device.problem for device in serving):
                gone = f"device {self.settings.device!r} is not there"
                raise DeviceError(serving[0].problem if serving else gone)
            if devices and found.preloaded and not (self._executor.problem or self._driver.problem):
                return
            if time.monotonic() >= end:
                raise Timeout(f"the prover is not ready after {timeout} s")
            time.sleep(READY_POLL_SECONDS)

    def drain(self, timeout: float | None = None) -> bool:
        """Takes no more proofs from now on, and waits for those that it has -> whether all are answered."""
        self._here()
        return self._dispatcher.drain(_optional(timeout))

    def close(self, grace: float | None = None) -> None:
        """Ends it, with its threads and processes; may be called again, and from any thread.

        Proofs that wait are aborted now, those that run after ``grace`` seconds (default: ``grace_period``).
        In a process that was forked from its own it does nothing.
        """
        # Before anything ends: what is half closed could not be closed again.
        grace = self.settings.grace_period if grace is None else seconds(grace, "grace")
        self._finalizer.detach()
        self._driver.close(grace)

    async def aclose(self, grace: float | None = None) -> None:
        """:meth:`close` for tasks."""
        await asyncio.to_thread(self.close, grace)

    def __enter__(self) -> Prover:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(None if kind is None else 0.0)

    async def __aenter__(self) -> Prover:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose(None if kind is None else 0.0)


def _optional(timeout: float | None) -> float | None:
    return None if timeout is None else seconds(timeout, "timeout")


def _limit_of_proving(settings: EngineSettings) -> int:
    """MiB for this process, workers and proofs."""
    aside = VERIFIER_BYTES // MIB if settings.verifier == "process" else 0
    return max(settings.memory_limit - aside, settings.memory_limit // 2, 1)


def _executor(settings: EngineSettings) -> Executor:
    if not settings.max_workers:
        return LocalExecutor(settings.threads, settings.device, settings.key_cache * MIB)
    gpus = {"cpu": (), "auto": None, "cuda": None}.get(settings.device, (settings.device,))
    return WorkerPool(
        PoolSettings(
            threads=settings.threads,
            min_workers=settings.min_workers,
            max_workers=settings.max_workers,
            gpus=gpus,
            memory_limit=settings.memory_limit,
            key_cache=settings.key_cache,
            warm=settings.policy == "eager",
            max_proofs_per_worker=settings.max_proofs_per_worker,
            worker_memory=settings.worker_memory,
            worker_wait=settings.worker_wait,
            idle_timeout=settings.idle_timeout,
            heartbeat_timeout=settings.heartbeat_timeout,
            init_timeout=settings.init_timeout,
            stall_timeout=settings.stall_timeout,
        )
    )


def _relieve(verification: Verification) -> None:
    verification.answers.shrink(0)
    memory.trim()


def _checker(directory: CircuitDirectory) -> Callable[[CircuitFiles], None]:
    def check(files: CircuitFiles) -> None:
        if files.vkey is not None:
            directory.verification_key(files)

    return check


def _cancel_submitted(submission: asyncio.Future[ProofJob]) -> None:
    if not submission.cancelled() and submission.exception() is None:
        submission.result().cancel()
