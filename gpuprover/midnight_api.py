"""The library's calls for the Midnight network: its proofs, its circuits, their keys and parameters.

Files are given by their paths, or as their bytes. Both lines of the network, ZKIR 2.0 with verifier keys of
version 6 and ZKIR 3.0 with version 7, are told apart by the files' tags. A preimage is secret, and so are the
reasons why a circuit does not accept one: errors name the instruction, and values only where they are asked
for (:attr:`.FailedCheck.official`).

:func:`gpuprover.load_key`, :func:`gpuprover.prove` and a prover of many circuits
(:func:`gpuprover.create_prover`) take these keys and preimages, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from os import PathLike
from typing import Any, cast

from gpuprover import api
from gpuprover.curves import BLS12_381
from gpuprover.devices import open_backend, resolve_device
from gpuprover.errors import InvalidInput, MalformedFile, about
from gpuprover.formats import json_files
from gpuprover.formats.files import Pathish, as_path, open_regular, write_atomic
from gpuprover.formats.snarkjs_json import parse_public_signals
from gpuprover.job import Event, Job, Progress
from gpuprover.midnight import envelopes, srs
from gpuprover.midnight.advice import AdviceSource, read_advice
from gpuprover.midnight.description import describe
from gpuprover.midnight.encoding import PREFIX
from gpuprover.midnight.ir import files
from gpuprover.midnight.ir.circuit import Circuit
from gpuprover.midnight.ir.run import run
from gpuprover.midnight.preimage import Preimage, read_preimage, write_preimage
from gpuprover.proving import ProofResult, refusing_memory
from gpuprover.systems import system as systems
from gpuprover.systems.system import ProvingKey, VerificationKey
from gpuprover.witness_source import WitnessLike

Data = bytes | bytearray | memoryview
CircuitLike = Pathish | Data
PublicInputs = Sequence[int | str] | Pathish

MAX_FILE = 1 << 30
"""Bytes of a circuit, a key or a proof that are read."""
_CURVE = BLS12_381


def load_key(
    prover: Pathish | Data, verifier: Pathish | Data | None = None, *, parameters: Pathish | None = None
) -> ProvingKey:
    """A ``.prover`` with its circuit laid out, and the parameters for it: what proofs are made with, as often
    as wanted.

    Args:
        prover: the prover key.
        verifier: the verifier key that has to belong to it; not looked at if None.
        parameters: the folder of the parameters; default: ``MIDNIGHT_PP``, else
            ``$XDG_CACHE_HOME/midnight/zk-params``, else ``$HOME/.cache/midnight/zk-params``.

    Raises:
        InvalidInput: a file cannot be opened, or no parameters are there; the message names the file.
        MalformedFile, UnsupportedFile: a file is damaged or of a kind that there is not, or they do not
            belong together.
    """
    with refusing_memory("the key"):
        key = systems.load_key(prover, parameters)
        if verifier is not None:
            other = read_verification_key(verifier, parameters=parameters)
            if other.digest != key.vk.digest:
                problem = "it is not the verifier key"
                raise MalformedFile(other.source, "", problem, role="verification key", more=f"of {key.path}")
        return key


def read_verification_key(verifier: Pathish | Data, *, parameters: Pathish | None = None) -> VerificationKey:
    """A ``.verifier``, for the network's parameters, or for those in a folder.

    Raises:
        InvalidInput, MalformedFile, UnsupportedFile: as :func:`load_key`.
    """
    return systems.read_verification_key(verifier, parameters)


def prove(
    key: ProvingKey | Pathish,
    preimage: Preimage | Pathish | Data | None = None,
    *,
    binding: int | None = None,
    advice: Pathish | Data | None = None,
    public: PublicInputs | None = None,
    **options: Any,
) -> ProofResult:
    """Proves a statement; see :func:`raw_proof` for the proof's bytes.

    Args:
        key: a key from :func:`load_key`, or the path of a ``.prover``.
        preimage: what the statement is proven from: a :class:`.Preimage`, its file's path or bytes.
        binding: a binding input in place of the preimage's.
        advice, public: in place of a preimage, a table of advice columns, as
            :mod:`gpuprover.midnight.advice` reads them, and the public inputs.
        options: those of :func:`gpuprover.prove`: ``device``, ``threads``, ``memory_limit``, ``progress``,
            ``cancel``, ``timeout``, ``verify``.

    Returns:
        the proof's document, public inputs as decimal strings, timings.

    Raises:
        FailedCheck: the circuit does not accept the preimage; says which instruction, its ``official`` has
            values.
        UnsatisfiedWitness: the table does not satisfy the circuit.
        ProverError: another of its kinds.
    """
    return api.prove(key, _witness(preimage, binding, advice, public), **options)


def _witness(
    preimage: Preimage | Pathish | Data | None,
    binding: int | None,
    advice: Pathish | Data | None,
    public: PublicInputs | None,
) -> WitnessLike:
    if (preimage is None) is (advice is None) or (advice is None) is not (public is None):
        raise InvalidInput("witness: expected either a preimage, or advice with public inputs")
    if advice is not None and public is not None:
        if binding is not None:
            raise InvalidInput("binding: the public inputs of an advice table begin with it")
        with about("witness"):
            data, name = _content(advice, "advice")
        return AdviceSource(read_advice(data, name), read_public_inputs(public))
    assert preimage is not None
    if binding is None and not isinstance(preimage, Preimage):
        return preimage
    return write_preimage(_bound(preimage, binding))


def _bound(preimage: Preimage | Pathish | Data, binding: int | None) -> Preimage:
    """A preimage with a binding input of the caller's, if there is one."""
    if not isinstance(preimage, Preimage):
        with about("witness"):
            data, name = _content(preimage, "preimage")
        preimage = read_preimage(data, name)
    if binding is None:
        return preimage
    if not isinstance(binding, int) or not 0 <= binding < _CURVE.r:
        raise InvalidInput(f"binding: expected an integer from 0 to below the prime of {_CURVE.scalar.name}")
    return replace(preimage, binding_input=binding)


def raw_proof(proof: Mapping[str, Any] | Pathish | Data) -> bytes:
    """A proof's bytes, without an envelope: from its document, or from a file, raw or in either envelope.

    Raises:
        InvalidInput: the file cannot be opened.
        MalformedFile, UnsupportedFile: an envelope is damaged or of another version.
    """
    if isinstance(proof, Mapping):
        data: bytes = systems.system_of_document(proof).parse_proof(proof, _CURVE, "proof", False).data
        return data
    with about("proof"):
        content, name = _content(proof, "proof")
        # A compressed point's first byte is none of text's.
        return envelopes.read_proof(content, name) if content.startswith(PREFIX) else content


def ledger_proof(proof: Mapping[str, Any] | Pathish | Data) -> bytes:
    """A proof in the envelope that the ledger has it in."""
    return envelopes.write_proof(raw_proof(proof))


def verify(
    verifier: VerificationKey | Pathish | Data,
    public: PublicInputs,
    proof: Mapping[str, Any] | Pathish | Data,
    *,
    parameters: Pathish | None = None,
    threads: int | None = None,
) -> bool:
    """Whether a proof holds for its public inputs.

    Args:
        verifier: a ``.verifier``, or what :func:`read_verification_key` made of one.
        public: the public inputs: integers or decimal strings, or the path of a JSON file with a list of
            them, or with an object that has one list of decimal strings.
        proof: as for :func:`raw_proof`.
        parameters: as for :func:`read_verification_key`.

    Raises:
        InvalidInput: a file cannot be opened.
        MalformedFile, UnsupportedFile: a file is damaged; of a proof: another length than the key's proofs
            have, a point off the curve or its subgroup, a scalar that is not below r.
    """
    key = verifier
    if not systems.is_verification_key(key):
        key = read_verification_key(cast(Pathish, key), parameters=parameters)
    return api.verify(key, read_public_inputs(public), _document(proof), threads=threads)


def verify_batch(
    verifier: VerificationKey | Pathish | Data,
    statements: Sequence[tuple[PublicInputs, Mapping[str, Any] | Pathish | Data]],
    *,
    parameters: Pathish | None = None,
    threads: int | None = None,
    cancel: Event | None = None,
) -> list[bool]:
    """For each (public inputs, proof) whether it holds, at a fraction of the time of single calls; a damaged
    one is False.

    Raises:
        InvalidInput: a file cannot be opened.
        MalformedFile, UnsupportedFile: the key, an envelope or a list of public inputs is damaged.
    """
    key = verifier
    if not systems.is_verification_key(key):
        key = read_verification_key(cast(Pathish, key), parameters=parameters)
    pairs = [(read_public_inputs(public), _document(proof)) for public, proof in statements]
    return api.verify_batch(key, pairs, threads=threads, cancel=cancel)


def _document(proof: Mapping[str, Any] | Pathish | Data) -> Mapping[str, Any]:
    if isinstance(proof, Mapping):
        return proof
    return {"protocol": "midnight", "curve": _CURVE.snarkjs_name, "proof": raw_proof(proof).hex()}


@about("public signals")
def read_public_inputs(public: PublicInputs) -> list[int]:
    """Public inputs as integers below r: from integers or decimal strings, or from a JSON file.

    Raises:
        InvalidInput: the file cannot be opened.
        MalformedFile: it is no JSON, no list and no object with one list of decimal strings; or a value is no
            integer below r.
    """
    source, document = "public inputs", cast(object, public)
    if isinstance(public, str | PathLike):
        source = str(as_path(public, "public inputs"))
        document = json_files.read_json(source)
    if isinstance(document, Mapping):
        lists = [value for value in document.values() if _is_decimal(value)]
        if len(lists) != 1:
            problem = f"expected one list of decimal strings in the object, found {len(lists)}"
            raise MalformedFile(source, "document", problem)
        document = lists[0]
    return parse_public_signals(document, _CURVE, None, source)


def _is_decimal(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(entry, str) for entry in value)


def read_circuit(circuit: CircuitLike) -> Circuit:
    """A circuit from a ``.bzkir`` or a ``.zkir``.

    Raises:
        InvalidInput: the file cannot be opened.
        MalformedFile, UnsupportedFile: it is damaged, or of a version or with instructions that there are
            not.
    """
    with about("circuit"):
        data, name = _content(circuit, "circuit")
        return files.read_circuit(data, name)


def check(
    circuit: CircuitLike | Circuit,
    preimage: Preimage | Pathish | Data,
    *,
    binding: int | None = None,
) -> list[int | None]:
    """Runs a circuit on a preimage, without a proof.

    Returns:
        for each group of declared inputs None if it is active, else how many values are skipped.

    Raises:
        FailedCheck: the circuit does not accept it; says which instruction, its ``official`` has values.
        InvalidInput, MalformedFile, UnsupportedFile: a file cannot be used.
    """
    found = circuit if isinstance(circuit, Circuit) else read_circuit(circuit)
    return list(run(found, _bound(preimage, binding)).skips)


def k(circuit: CircuitLike | Circuit) -> int:
    """log2 of the number of rows that a circuit's table has. Raises as :func:`read_circuit`."""
    from gpuprover.midnight.circuit import keygen as key_generation

    found = circuit if isinstance(circuit, Circuit) else read_circuit(circuit)
    return key_generation.size_of(found).k


def keygen(
    circuit: CircuitLike,
    prover: Pathish,
    verifier: Pathish,
    *,
    parameters: Pathish | None = None,
    device: str = "cpu",
    threads: int | None = None,
    memory_limit: int | None = None,
    progress: Callable[[Progress], None] | None = None,
    cancel: Event | None = None,
    timeout: float | None = None,
) -> VerificationKey:
    """Makes the keys of a circuit, byte for byte as the network's tools make them.

    Args:
        circuit: a ``.bzkir`` or a ``.zkir``.
        prover, verifier: where the keys are written: both, or neither.
        parameters: as for :func:`load_key`.

    Raises:
        ProverError: one of its kinds.
    """
    from gpuprover.midnight.circuit import keygen as key_generation

    job = Job(threads=threads, cancel=cancel, timeout=timeout, progress=progress)
    resolve_device(device)
    found = read_circuit(circuit)
    with refusing_memory("the keys"):
        with job.phase("layout"):
            size = key_generation.size_of(found)
        with job.phase("load parameters"):
            powers = srs.find_srs(size.k, parameters)
        backend = open_backend(device, _CURVE, job)
        with job.phase("commit"):
            proving, verifying = key_generation.keys(found, powers, backend)
        job.check()
        with write_atomic(prover) as first:
            first.write(proving)
            first.flush()
            with write_atomic(verifier) as second:
                second.write(verifying)
    return read_verification_key(verifying, parameters=parameters)


def info(path: Pathish) -> dict[str, Any]:
    """What a file of the network's holds, as JSON has it; of a preimage no values.

    Raises:
        InvalidInput: the file cannot be opened.
        MalformedFile, UnsupportedFile: it is none of the kinds that there are, or damaged.
    """
    data, name = _content(path, "file")
    return describe(data, name)


def check_parameters(path: Pathish) -> int:
    """Whether a file of parameters is the network's, by the published SHA-256 -> its k.

    Raises:
        InvalidInput: the file cannot be opened.
        MalformedFile: it is another file.
    """
    return srs.check_srs(path)


def downsize_parameters(
    path: Pathish,
    k: int,
    target: Pathish,
    *,
    threads: int | None = None,
    progress: Callable[[Progress], None] | None = None,
    cancel: Event | None = None,
) -> None:
    """Writes parameters for 2^k rows that follow from those for more, byte for byte as they are published.

    Raises:
        InvalidInput: a file cannot be read or written, or k is not smaller.
        MalformedFile: the file is damaged.
    """
    srs.downsize(path, k, target, Job(threads=threads, progress=progress, cancel=cancel))


def _content(given: Pathish | Data, what: str) -> tuple[bytes, str]:
    """(bytes, name for messages) of a file that is given by its path or content."""
    if isinstance(given, bytes | bytearray | memoryview):
        return bytes(given), what
    file, size = open_regular(as_path(given, what))
    with file:
        content = file.read(MAX_FILE + 1)
    if len(content) > MAX_FILE:
        raise InvalidInput(f"expected at most {MAX_FILE} bytes, found {size}", path=given)
    return content, str(given)
