"""The library's calls: keys, proofs, verification, set-up. Everything else in the package serves these."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import Any, cast
from warnings import warn

from gpuprover import memory
from gpuprover.backend import Backend
from gpuprover.devices import open_backend, resolve_device
from gpuprover.errors import InsecureBlindingWarning, InsecureKeyWarning, InvalidInput, about
from gpuprover.formats import json_files
from gpuprover.formats.files import Pathish, as_path
from gpuprover.formats.snarkjs_json import parse_public_signals
from gpuprover.job import Event, Job, Progress
from gpuprover.proving import Placed, ProofResult, make_proof, place, refusing_memory, run_placed
from gpuprover.systems import system as systems
from gpuprover.systems.system import ProvingKey, SetupResult, VerificationKey
from gpuprover.witness_source import WitnessLike, looked_at


def load_key(path: Pathish, *, parameters: Pathish | None = None) -> ProvingKey:
    """Maps a proving key and checks its structure; points of a ``.zkey``'s long sections are not looked at.

    Args:
        path: the file, a ``.zkey`` or of another kind that a proof system has.
        parameters: the folder of the parameters of a key that has none within; default: the system's own.

    Raises:
        InvalidInput: the file cannot be opened, or the key has its parameters within.
        MalformedFile: truncated, inconsistent, or values out of range.
        UnsupportedFile: another version, protocol or curve.
    """
    with refusing_memory("the key"):
        return systems.load_key(path, parameters)


def _check_switch(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise InvalidInput(f"{name}: expected True or False, found {type(value).__name__}")


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
    blinding: Sequence[int] | None = None,
) -> ProofResult:
    """Proves that a witness satisfies the key's circuit.

    Args:
        key: a key from :func:`load_key`, or its file's path.
        witness: path of a ``.wtns``, its bytes, integers (a sequence or uint64[n, limbs]), or
            ``{"inputs": {...}, "wasm": path}``, where ``fuel`` may bound the program's instructions; inputs
            may also be the JSON text of their object, as bytes. For a system that has witnesses of another
            kind: path of their file, or its bytes.
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
        blinding: fixed numbers in place of random ones, to compare proofs with others: (r, s) for Groth16,
            (b1, ..., b11) for PLONK, (b1, ..., b9) for FFLONK. For tests only: whoever knows or guesses them
            can learn the witness, and every call warns of that.

    Warns:
        InsecureBlindingWarning: ``blinding`` was given.

    Raises:
        ProverError: one of its kinds; see :mod:`gpuprover.errors`.
    """
    job = Job(threads=threads, cancel=cancel, timeout=timeout, progress=progress)
    resolve_device(device)
    _check_switch("verify", verify)
    if blinding is not None:
        problem = "a proof with fixed blinding gives the witness away: for tests only"
        warn(problem, InsecureBlindingWarning, stacklevel=2)

    def placed(loaded: ProvingKey, budget: int | None) -> Placed:
        return place(device, loaded, job, budget)

    return make_proof(
        key,
        looked_at(witness),
        job,
        placed,
        device=device,
        memory_limit=memory_limit,
        verify=verify,
        blinding=blinding,
    )


def _verification_key(source: VerificationKey | Mapping[str, Any] | Pathish) -> VerificationKey:
    if systems.is_verification_key(source):
        return source
    if isinstance(source, Mapping):
        key = systems.parse_verification_key(source)
    else:
        key = systems.verification_key_at(str(as_path(cast(Pathish, source), "verification key")))
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
    _check_switch("strict", strict)
    with refusing_memory("the verification"):
        key = _verification_key(verification_key)
        signals, signals_source = _document(public_signals, "public signals")
        document, proof_source = _document(proof, "proof")
        system = systems.system_named(key.protocol)
        public = parse_public_signals(signals, key.curve, key.n_public, signals_source, strict=strict)
        parsed = system.parse_proof(document, key.curve, proof_source, strict)
        backend = _verifying_backend(key, threads)
        return system.verify(key, public, parsed, backend, key.source, proof_source)


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
    with refusing_memory("the verification"):
        key = _verification_key(verification_key)
        pairs = _pairs(statements)
        system = systems.system_named(key.protocol)
        return system.verify_documents(key, pairs, _verifying_backend(key, threads, cancel))


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
    protocol: str = "groth16",
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

    Args:
        protocol: the proof system's name, as keys and documents have it.
        ptau: powers of tau, prepared for phase 2; or else ``insecure`` has to be True. A key of Groth16 has
            no phase-2 contribution yet then, and is no use before it has one; others have no second phase.
        device: as for :func:`prove`, but ``auto`` is the CPU. A GPU multiplies the generators of an insecure
            set-up; what is made of a ceremony's file is the CPU's work in any case.

    Raises:
        ProverError: one of its kinds; the output is written whole or not at all.
    """
    from gpuprover.formats.r1cs import read_r1cs

    system = systems.system_asked_for(protocol, "protocol")
    if not isinstance(insecure, bool) or (ptau is None) is not insecure:
        raise InvalidInput("setup: expected either a ptau file or insecure, not both and not neither")
    job = Job(threads=threads, cancel=cancel, timeout=timeout, progress=progress)
    resolve_device(device)
    budget = memory.budget(memory_limit)
    with refusing_memory("the set-up"):
        with job.phase("read circuit"):
            circuit = read_r1cs(r1cs, budget, job.check)
        need = system.setup_memory(circuit, ptau is not None)
        memory.require(need, budget, f"the set-up for {circuit.source}")

        def run(backend: Backend) -> SetupResult:
            return system.setup(circuit, ptau, zkey, backend)

        # Most of it is what every backend leaves to the CPU: on a GPU by name only.
        placed = Placed(resolve_device(device))
        result, _, warnings = run_placed(placed, circuit.curve, job, run)
        return result._replace(warnings=(*result.warnings, *warnings))
