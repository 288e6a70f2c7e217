"""The library's calls: keys, proofs, verification, set-up. Everything else in the package serves these."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from operator import index
from os import PathLike
from typing import TYPE_CHECKING, Any, TypeVar
from warnings import warn

import numpy as np

from gpuprover import memory
from gpuprover.backend import Backend
from gpuprover.curves import CurveParams, Group
from gpuprover.demand import MemoryPlan
from gpuprover.devices import distrust, found_gpus, is_gpu, open_backend, refused_gpu, resolve_device
from gpuprover.errors import (
    DeviceError,
    InsecureBlindingWarning,
    InsecureKeyWarning,
    InvalidInput,
    MalformedFile,
    OutOfMemory,
    UnsatisfiedWitness,
    about,
)
from gpuprover.formats import groth16_json, json_files
from gpuprover.formats.files import as_path
from gpuprover.formats.groth16_json import VerificationKey
from gpuprover.formats.wtns import Witness, check_witness_values, read_witness
from gpuprover.formats.zkey import ProvingKey
from gpuprover.formats.zkey import load_key as _load_zkey
from gpuprover.job import Event, Job, Progress
from gpuprover.limbs import Words, ints_to_words
from gpuprover.scheduler import TIERS, JobShape, choose, tier_of

if TYPE_CHECKING:
    from gpuprover.groth16.setup import SetupResult

Pathish = str | PathLike[str]
T = TypeVar("T")

WitnessLike = Pathish | bytes | bytearray | memoryview | Sequence[int] | Words | Mapping[str, Any]


@dataclass(frozen=True)
class ProofResult:
    """A proof and how it came about.

    Attributes:
        proof: snarkjs's document: pi_a, pi_b, pi_c, protocol, curve; decimal strings.
        public_signals: decimal strings.
        timings: seconds by phase, those of a device that failed included.
        device: the device that made it, the CPU if another one failed.
        memory: resident bytes ``before``, at the ``peak`` and ``after``; mapped pages of the key count.
        warnings: sentences that the proof's user has to read.
    """

    proof: dict[str, Any]
    public_signals: list[str]
    timings: dict[str, float]
    device: str
    memory: dict[str, int]
    warnings: tuple[str, ...] = field(default=())


def load_key(path: Pathish) -> ProvingKey:
    """Maps a ``.zkey`` and checks its structure; the points of its long sections are not looked at.

    Raises:
        InvalidInput: the file cannot be opened.
        MalformedFile: truncated, inconsistent, or values out of range.
        UnsupportedFile: another version, protocol or curve.
    """
    with _memory("the key"):
        return _load_zkey(path)


@contextmanager
def _memory(what: str) -> Iterator[None]:
    """What the machine refuses is OutOfMemory, wherever it was asked for."""
    try:
        yield
    except MemoryError as error:
        raise OutOfMemory(f"the machine refused memory for {what}: {error}") from None


def _check_switch(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise InvalidInput(f"{name}: expected True or False, found {type(value).__name__}")


@about("witness")
def _load_witness(source: WitnessLike, curve: CurveParams, job: Job, memory_limit: int | None) -> Witness:
    if isinstance(source, bytes | bytearray | memoryview | str | PathLike):
        with job.phase("load witness"):
            return read_witness(source)
    if isinstance(source, Mapping):
        from gpuprover.witness import calculate_witness

        unknown = set(source) - {"inputs", "wasm", "fuel"}
        if unknown or "wasm" not in source or "inputs" not in source:
            raise InvalidInput("witness: expected {'inputs': {...}, 'wasm': path}, and perhaps 'fuel'")
        program = str(as_path(source["wasm"], "witness program"))
        inputs = source["inputs"]
        with job.phase("calculate witness"):
            if isinstance(inputs, bytes):
                with about("inputs"):
                    inputs = json_files.parse_json(inputs, "circuit inputs")
            found, words = calculate_witness(
                program,
                inputs,
                job=job,
                fuel=source.get("fuel"),
                memory_limit=memory_limit,
            )
        return Witness(found, words, program)
    # What is checked is a copy, which its caller does not change.
    words = witness_words(source, curve).copy(order="C")
    check_witness_values(words, curve, "witness", "values")
    return Witness(curve, words)


def witness_words(values: Sequence[int] | Words, curve: CurveParams) -> Words:
    """Integers as uint64[n, limbs]; an array that is that already stays as it is, its values not looked at.

    Raises:
        InvalidInput: an array of another kind, or values that are no integers from 0 to below 2^(64·limbs).
    """
    limbs = curve.scalar.limbs
    if isinstance(values, np.ndarray) and values.ndim == 2:
        if values.dtype != np.uint64 or values.shape[1] != limbs:
            raise InvalidInput(
                f"witness: expected uint64[n, {limbs}], found {values.dtype} of shape {values.shape}"
            )
        return values
    try:
        return ints_to_words((index(v) for v in values), limbs)
    except (TypeError, ValueError, OverflowError):
        raise InvalidInput(
            f"witness: expected integers from 0 to below the prime of {curve.scalar.name}"
        ) from None


def prove(
    key: ProvingKey | Pathish,
    witness: WitnessLike,
    *,
    device: str = "auto",
    threads: int | None = None,
    memory_limit: int | None = None,
    progress: Callable[[Progress], None] | None = None,
    cancel: Event | None = None,
    timeout: float | None = None,
    verify: bool = True,
    blinding: tuple[int, int] | None = None,
) -> ProofResult:
    """Proves that a witness satisfies the key's circuit.

    Args:
        key: from :func:`load_key`, or a path.
        witness: path of a ``.wtns``, its bytes, integers (a sequence or uint64[n, limbs]), or
            ``{"inputs": {...}, "wasm": path}``, where ``fuel`` may bound the program's instructions; inputs
            may also be the JSON text of their object, as bytes.
        device: ``auto``, ``cpu``, ``cuda`` (the freest GPU) or ``cuda:N``. With ``auto``, the CPU takes over
            from a GPU that fails or runs out of memory, and ``warnings`` says so.
        threads: at most this many; default ``PROVER_THREADS`` or the CPUs of this process.
        memory_limit: MiB for the whole process, the mapped key not counted.
        progress: called with :class:`gpuprover.Progress` now and then.
        cancel: an event (``is_set()``); takes effect within 200 ms of work.
        timeout: seconds.
        verify: check the proof before it is returned. Without, a bad witness gives a bad proof, and a key's
            first proof takes longer: every point of the key is looked at, since of bad ones a proof would
            tell parts of the witness. Whoever can write to the key's file learns the witness even so.
        blinding: fixed (r, s) in place of random ones, to compare proofs with each other. For tests only:
            whoever knows or guesses it can learn the witness, and every call warns of that.

    Warns:
        InsecureBlindingWarning: ``blinding`` was given.

    Raises:
        ProverError: one of its kinds; see :mod:`gpuprover.errors`.
    """
    job = Job(threads=threads, cancel=cancel, timeout=timeout, progress=progress)
    resolve_device(device)
    fixed = _checked_blinding(blinding)
    _check_switch("verify", verify)
    if fixed is not None:
        problem = "a proof with fixed blinding gives the witness away: for tests only"
        warn(problem, InsecureBlindingWarning, stacklevel=2)

    def placed(loaded: ProvingKey, held: int) -> Placed:
        return place(device, loaded, job, _budget(memory_limit, held))

    return _prove(key, witness, job, placed, memory_limit=memory_limit, verify=verify, blinding=fixed)


def _budget(limit: int | None, held: int) -> int | None:
    """Bytes that a limit in MiB leaves for a proof, whose plan counts the ``held`` bytes of its witness."""
    left = memory.budget(limit)
    return None if left is None else left + held


def prove_placed(
    key: ProvingKey | Pathish,
    witness: WitnessLike,
    placed: Placed,
    job: Job,
    *,
    memory_limit: int | None = None,
) -> ProofResult:
    """:func:`prove` where somebody else has placed it: no other device takes over.

    ``memory_limit`` is as there; who places several proofs in one process bounds their sum, and gives none.
    The proof is verified, and its blinding is random.
    """
    return _prove(key, witness, job, lambda *_: placed, memory_limit=memory_limit, verify=True, blinding=None)


def _prove(
    key: ProvingKey | Pathish,
    witness: WitnessLike,
    job: Job,
    placed_for: Callable[[ProvingKey, int], Placed],
    *,
    memory_limit: int | None,
    verify: bool,
    blinding: tuple[int, int] | None,
) -> ProofResult:
    from gpuprover.groth16 import prover

    before = memory.resident()
    memory.reset_peak()
    with _memory("the proof"):
        if isinstance(key, ProvingKey):
            loaded = key
        else:
            with job.phase("load key"):
                loaded = load_key(key)
        values = _load_witness(witness, loaded.curve, job, memory_limit)
        prover.check_witness_fits(loaded, values)
        # Once: what is verified is what the caller gets.
        public = prover.public_signals(loaded, values)
        held = values.values.nbytes

        def run(backend: Backend) -> groth16_json.Proof:
            budget = _budget(memory_limit, held)
            if budget is None and not is_gpu(backend.name):
                budget = placed.budget
            # The limit is on this process: how much of a GPU is taken is between its pool and what is free.
            plan = backend.plan(loaded.plan_header, None if is_gpu(backend.name) else budget)
            if is_gpu(backend.name):
                memory.require(plan.host, budget, f"a proof on {backend.name}")
            with job.phase("check key header"):
                loaded.check_header_subgroups(backend)
            if not verify:
                prover.check_key_once(loaded, backend)
            # Every run draws its own blinding: what a failed GPU still holds tells nothing of this proof.
            proof = prover.prove(loaded, values, backend, blinding)
            if not verify:
                return prover.in_subgroups(loaded, proof, backend)
            return prover.checked(loaded, values, public, proof, backend)

        placed = placed_for(loaded, held)
        proof, ran_on, warnings = _run(placed, loaded.curve, job, run)
    job.check()
    after = memory.resident()
    # The system counts in lumps: its peak may lack the last pages.
    peak = max(before, memory.peak(), after)
    return ProofResult(
        proof=groth16_json.proof_to_json(proof, loaded.curve),
        public_signals=[str(x) for x in public],
        timings=dict(job.timings),
        device=ran_on,
        memory={"before": before, "peak": peak, "after": after},
        warnings=(*loaded.warnings, *warnings),
    )


# Where it runs -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Placed:
    """Where something runs.

    Attributes:
        device: its own name: ``cpu``, ``cuda:0``.
        host_groups: groups whose sums the CPU computes while a GPU does the rest.
        warnings: why it is not where one would expect it.
        takeover: whether the CPU takes over from a GPU that fails.
        budget: bytes that it may take of the device's memory, on a GPU with its part of the key; None: what
            is free on a GPU, what the limit leaves of the host.
    """

    device: str
    host_groups: frozenset[Group] = frozenset()
    warnings: tuple[str, ...] = ()
    takeover: bool = False
    budget: int | None = None


def place(device: str, key: ProvingKey, job: Job, budget: int | None) -> Placed:
    """Where a proof with a key runs. ``auto`` asks the scheduler, and nothing else does.

    ``budget``: bytes of the host's memory that the proof may take.

    Raises:
        DeviceError: the device that was asked for cannot be had.
        OutOfMemory: no device holds the proof.
    """
    if device != "auto":
        return Placed(resolve_device(device))
    if not any(gpu.problem is None for gpu in found_gpus()):
        # Small circuits would not be on a GPU anyway.
        refused = refused_gpu() if tier_of(key.constraints) is TIERS[-1] else None
        return Placed("cpu", warnings=() if refused is None else (f"{refused}; the CPU proves instead",))
    from gpuprover import calibration

    header = key.plan_header
    plans = {
        "cpu": (open_backend("cpu", key.curve, job).plan(header, None),),
        "cuda": (_least_on_gpu(key),),
    }
    parts = frozenset({Group.G2.value})
    shape = JobShape(calibration.groth16(key.curve), key.constraints, plans, parts)
    chosen = choose("auto", shape, calibration.devices(job.threads, budget), calibration.load())
    return Placed(chosen.device, frozenset(Group(name) for name in chosen.host_parts), takeover=True)


def _least_on_gpu(key: ProvingKey) -> MemoryPlan:
    """What a GPU has to hold at least: bases are sent in slices where there is no more.

    The device's own plan is made when it is open, which choosing it shall not wait for.
    """
    element = key.curve.scalar.bytes
    return MemoryPlan(key=0, tables=0, arena=(4 * key.domain_size + 2 * key.n_vars) * element, host=0)


def _run(
    placed: Placed, curve: CurveParams, job: Job, work: Callable[[Backend], T]
) -> tuple[T, str, tuple[str, ...]]:
    """``work`` where it was placed, or on the CPU if that takes over.

    Returns:
        the result, the device that made it, warnings.
    """
    name, warnings = placed.device, placed.warnings
    suspect = False
    try:
        backend = open_backend(name, curve, job, placed.host_groups, placed.budget)
        return work(backend), name, warnings
    except (DeviceError, OutOfMemory) as error:
        if not placed.takeover or not is_gpu(name):
            raise
        problem = error.message
    except (UnsatisfiedWitness, MalformedFile):
        # A GPU that computes wrongly looks the same: the CPU decides.
        if not is_gpu(name):
            raise
        suspect, problem = True, f"{name}: it made a wrong proof from a good key and witness"
    job.resume()
    result = work(open_backend("cpu", curve, job))
    if suspect:
        distrust(name, problem)
        if not placed.takeover:
            raise DeviceError(problem)
    return result, "cpu", (*warnings, f"{problem}; the CPU took over")


def _checked_blinding(blinding: tuple[int, int] | None) -> tuple[int, int] | None:
    if blinding is None:
        return None
    pair = isinstance(blinding, tuple | list) and len(blinding) == 2
    if not pair or not all(type(x) is int and x >= 0 for x in blinding):
        raise InvalidInput("blinding: expected two integers of at least 0")
    return blinding[0], blinding[1]


def _verification_key(source: VerificationKey | Mapping[str, Any] | Pathish) -> VerificationKey:
    if isinstance(source, VerificationKey):
        return source
    if isinstance(source, Mapping):
        key = groth16_json.parse_verification_key(source)
    else:
        path = str(as_path(source, "verification key"))
        with about("verification key"):
            key = groth16_json.parse_verification_key(json_files.read_json(path), path)
    for sentence in key.warnings:
        # Whoever has parsed the key can ask it; others hear of it here, each place of a program once.
        warn(f"{key.source}: {sentence}", InsecureKeyWarning, stacklevel=3)
    return key


def _document(source: object, name: str) -> tuple[object, str]:
    if isinstance(source, str | PathLike):
        path = str(as_path(source, name))
        with about(name):
            return json_files.read_json(path), path
    return source, name


def verify(
    verification_key: VerificationKey | Mapping[str, Any] | Pathish,
    public_signals: Sequence[int | str] | Pathish,
    proof: Mapping[str, Any] | Pathish,
    *,
    threads: int | None = None,
    strict: bool = False,
) -> bool:
    """Whether a proof holds. Each argument is a document as snarkjs writes it, or the path of one.

    A valid proof can be turned into other valid proofs of the same signals by anybody, and sent again: what
    was used is kept by the integers of its public signals. A key for which proofs can be forged, as far as
    its points show, is told of by an :class:`InsecureKeyWarning`.

    Args:
        strict: numbers of proof and public signals have to be decimal text without leading zeros, so that
            no two documents say the same. Otherwise 7, "7", "007" and "0x7" are the same number.

    Raises:
        MalformedFile, UnsupportedFile: a document is damaged: fields missing, numbers out of
            range, points off their curve or subgroup, another number of public signals.
        InvalidInput: a file cannot be opened.
    """
    from gpuprover.groth16 import verifier

    _check_switch("strict", strict)
    with _memory("the verification"):
        key = _verification_key(verification_key)
        signals, signals_source = _document(public_signals, "public signals")
        document, proof_source = _document(proof, "proof")
        public = groth16_json.parse_public_signals(
            signals, key.curve, key.n_public, signals_source, strict=strict
        )
        parsed = groth16_json.parse_proof(document, key.curve, proof_source, strict=strict)
        backend = _verifying_backend(key, threads)
        return verifier.verify(key, public, parsed, backend, key_source=key.source, proof_source=proof_source)


def verify_batch(
    verification_key: VerificationKey | Mapping[str, Any] | Pathish,
    statements: Sequence[tuple[Sequence[int | str], Mapping[str, Any]]],
    *,
    threads: int | None = None,
    cancel: Event | None = None,
) -> list[bool]:
    """For each (public signals, proof) whether it holds; a damaged one, or one for another curve, is False.

    Many proofs of one key cost a fraction of as many calls of :func:`verify`.

    Raises:
        MalformedFile, UnsupportedFile: the key is damaged.
        InvalidInput: statements are no pairs.
    """
    from gpuprover.groth16 import verifier

    with _memory("the verification"):
        key = _verification_key(verification_key)
        pairs = _pairs(statements)
        return verifier.verify_documents(key, pairs, _verifying_backend(key, threads, cancel))


def _pairs(statements: object) -> list[tuple[object, object]]:
    try:
        pairs = list(statements)  # type: ignore[call-overload]
    except (TypeError, NotImplementedError):  # as arrays and views of some shapes say
        pairs = [None]
    if all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in pairs):
        return [(signals, proof) for signals, proof in pairs]
    raise InvalidInput("statements: expected pairs of public signals and a proof")


def _verifying_backend(key: VerificationKey, threads: int | None, cancel: Event | None = None) -> Backend:
    # A pairing is a millisecond on one thread of a CPU: no device is asked.
    return open_backend("cpu", key.curve, Job(threads=threads, cancel=cancel))


def setup(
    r1cs: Pathish,
    zkey: Pathish,
    *,
    ptau: Pathish | None = None,
    insecure: bool = False,
    device: str = "auto",
    threads: int | None = None,
    memory_limit: int | None = None,
    progress: Callable[[Progress], None] | None = None,
    cancel: Event | None = None,
    timeout: float | None = None,
) -> SetupResult:
    """Makes a proving key for a circuit, from a ceremony's file or (insecurely) from a local secret.

    Exactly one of ``ptau`` and ``insecure`` has to be given. Either key has no phase-2 contribution yet.
    ``device``: as for :func:`prove`, but ``auto`` is the CPU. A GPU multiplies the generators of an insecure
    set-up; what is made of a ceremony's file is the CPU's work in any case.

    Raises:
        ProverError: one of its kinds; the output is written whole or not at all.
    """
    from gpuprover.formats.ptau import read_ptau
    from gpuprover.formats.r1cs import read_r1cs
    from gpuprover.groth16.setup import memory_needed, setup_from_ptau, setup_insecure

    if not isinstance(insecure, bool) or (ptau is None) is not insecure:
        raise InvalidInput("setup: expected either a ptau file or insecure, not both and not neither")
    job = Job(threads=threads, cancel=cancel, timeout=timeout, progress=progress)
    resolve_device(device)
    budget = memory.budget(memory_limit)
    with _memory("the set-up"):
        with job.phase("read circuit"):
            circuit = read_r1cs(r1cs, budget, job.check)
        memory.require(memory_needed(circuit, ptau is not None), budget, f"the set-up for {circuit.source}")

        def run(backend: Backend) -> SetupResult:
            if ptau is not None:
                return setup_from_ptau(circuit, read_ptau(ptau), zkey, backend)
            return setup_insecure(circuit, zkey, backend)

        # Most of it is what every backend leaves to the CPU: on a GPU by name only.
        placed = Placed(resolve_device(device))
        result, _, warnings = _run(placed, circuit.curve, job, run)
        return replace(result, warnings=(*result.warnings, *warnings))
