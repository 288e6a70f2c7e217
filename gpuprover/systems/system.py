"""Proof systems as the layers above see them: a record of functions for each, and the registry of records.

A proof goes the same way in every system: *parse the key → its demand → choose a device → prove → verify, or
say what is wrong → document* (:mod:`gpuprover.proving`). A :class:`ProofSystem` says how each step is done.
Whoever is above knows systems by their names, which are the protocols' names in snarkjs's files, and imports
none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeGuard, runtime_checkable

from gpuprover import forks
from gpuprover.backend import Backend
from gpuprover.curves import PAIRING_CURVES, CurveParams
from gpuprover.demand import Budget, Demand
from gpuprover.errors import InvalidInput, MalformedFile, UnsupportedFile, about, brief
from gpuprover.formats import zkey
from gpuprover.formats.binfile import Source
from gpuprover.formats.files import Pathish, open_regular
from gpuprover.formats.json_files import read_json, shown
from gpuprover.formats.wtns import Allocate
from gpuprover.job import Job
from gpuprover.witness_source import WitnessSource

if TYPE_CHECKING:
    from gpuprover.formats.r1cs import R1CS

Proof = Any
"""A proof of one system, as its record's functions make and take it."""


class Witness(Protocol):
    """A witness of one system, as its record's functions read and take it. Secret.

    Attributes:
        source: where it came from, for messages.
        nbytes: memory that it takes.
    """

    @property
    def source(self) -> str: ...
    @property
    def nbytes(self) -> int: ...


class VerificationKey(Protocol):
    """A verification key: all that a verifier needs of a circuit.

    Attributes:
        protocol: the proof system's name.
        curve: the curve.
        n_public: the number of public signals.
        source: where it came from, for messages; equal keys may differ in it.
        warnings: sentences that whoever trusts the key has to read.
        digest: SHA-256 in hex of its values: equal exactly for equal keys, however written.
        document: the document that a verifier reads, without what no verifier needs.
    """

    @property
    def protocol(self) -> str: ...
    @property
    def curve(self) -> CurveParams: ...
    @property
    def n_public(self) -> int: ...
    @property
    def source(self) -> str: ...
    @property
    def warnings(self) -> tuple[str, ...]: ...
    @property
    def digest(self) -> str: ...
    @property
    def document(self) -> dict[str, Any]: ...


@runtime_checkable
class ProvingKey(Protocol):
    """A key to prove with, mapped.

    Attributes:
        protocol: the proof system's name.
        curve: the curve.
        path: where it came from, for messages.
        size: bytes of its file.
        constraints: the number of rows of its circuit.
        n_public: the number of public signals.
        n_vars: the number of values of a witness.
        warnings: sentences that whoever uses the key has to read.
        vk: the verification key.
        verification_key: the verification key's document, as snarkjs exports it.
        demand: what a proof asks of a device.
    """

    @property
    def protocol(self) -> str: ...
    @property
    def curve(self) -> CurveParams: ...
    @property
    def path(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def constraints(self) -> int: ...
    @property
    def n_public(self) -> int: ...
    @property
    def n_vars(self) -> int: ...
    @property
    def warnings(self) -> tuple[str, ...]: ...
    @property
    def vk(self) -> VerificationKey: ...
    @property
    def verification_key(self) -> dict[str, Any]: ...
    @property
    def demand(self) -> Demand: ...


class SetupResult(NamedTuple):
    """A set-up's account of the key that it wrote.

    Attributes:
        circuit_hash: 64 bytes; for a key made from a ceremony, the hash that ``snarkjs`` calls circuit hash.
            Empty where keys take no contributions and have none.
        domain_size: rows of the key's domain.
        warnings: sentences that a person has to read.
    """

    circuit_hash: bytes
    domain_size: int
    warnings: tuple[str, ...]


class KeyOutline(NamedTuple):
    """A key as a set-up would make it, for plans.

    Attributes:
        constraints: the number of rows, as :attr:`ProvingKey.constraints`.
        size: bytes of its file.
        demand: what a proof asks of a device.
    """

    constraints: int
    size: int
    demand: Demand


class KeyCheck(NamedTuple):
    """A check of a whole key: what was looked at, in words, and what could not be.

    Attributes:
        warnings: sentences beyond :attr:`ProvingKey.warnings`.
    """

    checked: tuple[str, ...]
    unchecked: tuple[str, ...]
    warnings: tuple[str, ...] = ()


def read_values(
    key: ProvingKey, source: WitnessSource, job: Job, memory_limit: int | None, allocate: Allocate
) -> Witness:
    """The values of all wires, as circom's programs compute them; see :meth:`.WitnessSource.load`."""
    return source.load(key.curve, job, memory_limit, allocate)


class ProofSystem(NamedTuple):
    """One proof system. Functions take the record's own keys, witnesses and proofs.

    Attributes:
        name: the protocol's name: in documents, messages, metrics, and under which times are kept.
        host_parts: what a CPU can compute of a proof beside a GPU, by name.
        load_key: a key's file, mapped and its structure checked -> :class:`ProvingKey`.
        read_verification_key: the verification key in a key's file, of which nothing else is read.
        parse_verification_key: (document, source) -> :class:`VerificationKey`.
        check_key: (key, backend) raises MalformedFile for what every proof has to look at in the key.
        check_every_point: (key, backend) raises MalformedFile for a bad point; looks at a key once.
        check_blinding: what a caller gave for fixed blinding -> what ``prove`` takes; raises InvalidInput.
        check_witness: (key, witness) raises WitnessMismatch.
        public_signals: (key, witness) -> integers in [0, r).
        prove: (key, witness, backend, blinding or None, budget) -> a proof, not verified.
        checked: (key, witness, public signals, proof, backend) -> the proof, if it verifies; otherwise raises
            what is wrong, as MalformedFile or UnsatisfiedWitness.
        in_subgroups: (key, proof, backend) -> a proof that nobody verifies, if its points are in their
            subgroups; raises MalformedFile.
        write_proof: (proof, curve) -> its document.
        parse_proof: (document, curve, source, strict) -> a proof.
        sample_proof: (key) -> a proof whose points can be verified with, though it does not hold.
        verify: (key, public signals, proof, backend, key source, proof source) -> whether it holds.
        verify_documents: (key, pairs of documents, backend) -> for each whether it holds; a damaged one is
            False.
        describe_key: (key) -> what ``zkey info`` says of it, as JSON.
        check_whole_key: (key, circuit or None, powers of tau or None, backend, bytes of memory or None) looks
            at all of a key, by itself or beside the files that it was made from; raises MalformedFile.
        setup: (circuit, powers of tau or None for an insecure set-up, the key's path, backend) writes a key.
        setup_memory: (circuit, whether from powers of tau) -> bytes that it takes.
        outline: (circuit, backend) -> the key that a set-up would make of it.
        solidity_verifier: (verification key's document, whether an insecure key will do) -> a contract.
        solidity_calldata: (public signals' document, proof's document, their sources) -> arguments of a call.
        proof_schema: a JSON Schema of what ``write_proof`` writes, its ``title`` being the name in OpenAPI;
            None: any object.
        curves: the curves that its keys may be over.
        sets_up: whether ``setup`` and ``outline`` take circuits of circom's kind.
        rows: what the rows of its circuits are called.
        read_curve: a key's file -> the curve that it is over, nothing else being read.
        read_witness: (key, source, job, MiB for the process or None, memory for values) -> a witness, in
            memory of its own; raises what is wrong with the source by itself, and as UnsatisfiedWitness what
            shows when it is read.
        parameters_apart: whether parameters of keys lie in files of their own. ``load_key`` and
            ``read_verification_key`` then take their folder as a second argument, too.
        phases: names of the phases that ``prove`` and ``checked`` report, in their order.
    """

    name: str
    host_parts: frozenset[str]
    load_key: Callable[..., Any]
    read_verification_key: Callable[..., Any]
    parse_verification_key: Callable[[object, str], Any]
    check_key: Callable[[Any, Backend], None]
    check_every_point: Callable[[Any, Backend], None]
    check_blinding: Callable[[object], Any]
    check_witness: Callable[[Any, Any], None]
    public_signals: Callable[[Any, Any], list[int]]
    prove: Callable[[Any, Any, Backend, Any, Budget], Proof]
    checked: Callable[[Any, Any, Sequence[int], Proof, Backend], Proof]
    in_subgroups: Callable[[Any, Proof, Backend], Proof]
    write_proof: Callable[[Proof, CurveParams], dict[str, Any]]
    parse_proof: Callable[[object, CurveParams, str, bool], Proof]
    sample_proof: Callable[[Any], Proof]
    verify: Callable[[Any, Sequence[int], Proof, Backend, str, str], bool]
    verify_documents: Callable[[Any, Sequence[tuple[object, object]], Backend], list[bool]]
    describe_key: Callable[[Any], dict[str, Any]]
    check_whole_key: Callable[[Any, Pathish | None, Pathish | None, Backend, int | None], KeyCheck]
    setup: Callable[[R1CS, Pathish | None, Pathish, Backend], SetupResult]
    setup_memory: Callable[[R1CS, bool], int]
    outline: Callable[[R1CS, Backend], KeyOutline]
    solidity_verifier: Callable[[Any, bool], str]
    solidity_calldata: Callable[[Any, Any, str, str], str]
    proof_schema: Mapping[str, Any] | None = None
    curves: tuple[CurveParams, ...] = PAIRING_CURVES
    sets_up: bool = True
    rows: str = "constraints"
    phases: tuple[str, ...] = ()
    read_curve: Callable[[Source], CurveParams] = zkey.read_curve
    read_witness: Callable[[Any, WitnessSource, Job, int | None, Allocate], Witness] = read_values
    parameters_apart: bool = False


_SYSTEMS: dict[str, str] = {
    "groth16": "gpuprover.systems.groth16.record:SYSTEM",
    "plonk": "gpuprover.systems.plonk.record:SYSTEM",
    "fflonk": "gpuprover.systems.fflonk.record:SYSTEM",
    "midnight": "gpuprover.systems.midnight.record:SYSTEM",
}
"""Name -> module:attribute of the record."""


class KeyFile(NamedTuple):
    """A kind of key files.

    Attributes:
        leading: bytes that proving keys begin with, and verification keys that are no JSON.
        suffix: the end of a proving key's name.
        verification_suffix: the end of the name of a verification key, beside it.
    """

    leading: bytes
    suffix: str
    verification_suffix: str


ZKEY = KeyFile(b"zkey", ".zkey", ".vkey.json")
"""snarkjs's, which say themselves which system they are for."""
_KEY_FILES: dict[str, KeyFile] = {"midnight": KeyFile(b"midnight:", ".prover", ".verifier")}
"""Name -> its own kind of key files, recognised before its record is imported."""


def late(place: str) -> Callable[..., Any]:
    """The function at ``module:name``, whose module is imported when it is first called."""
    module, _, name = place.partition(":")

    def call(*arguments: Any) -> Any:
        with forks.settled:
            loaded = import_module(module)
        return getattr(loaded, name)(*arguments)

    return call


def names() -> list[str]:
    """The proof systems that there are."""
    return list(_SYSTEMS)


def system_named(name: str) -> ProofSystem:
    """The system of that name. Raises KeyError."""
    return _record(_SYSTEMS[name])


def system_asked_for(name: object, what: str) -> ProofSystem:
    """The system that a caller names; ``what`` is called so in the message. Raises InvalidInput."""
    if not isinstance(name, str) or name not in _SYSTEMS:
        raise InvalidInput(f"{what}: expected one of {', '.join(_SYSTEMS)}; found {brief(name)!r}")
    return system_named(name)


@lru_cache
def _record(place: str) -> ProofSystem:
    module, _, attribute = place.partition(":")
    with forks.settled:
        found: ProofSystem = getattr(import_module(module), attribute)
    return found


def is_proving_key(value: object) -> TypeGuard[ProvingKey]:
    """Whether it is a loaded key, and no path of one."""
    return hasattr(type(value), "demand")


def is_verification_key(value: object) -> TypeGuard[VerificationKey]:
    """Whether it is a parsed key, and neither a document nor a path."""
    return hasattr(type(value), "digest")


def key_files() -> list[KeyFile]:
    """The kinds of key files that there are."""
    return [ZKEY, *_KEY_FILES.values()]


def system_of_key(source: Source) -> ProofSystem:
    """The system that a key's file is for.

    Raises:
        InvalidInput: the file cannot be opened.
        MalformedFile: it is no key, or damaged.
        UnsupportedFile: a key of another version, or of a system that there is not.
    """
    own = _own_kind(source)
    if own is not None:
        return system_named(own)
    try:
        return system_named(zkey.identify(source, names()))
    except MalformedFile:
        # The first system says what is wrong, in the words for its sections.
        return system_named(next(iter(_SYSTEMS)))


@about("key")
def _own_kind(source: Source) -> str | None:
    """The system whose own kind of key files it is; None: none of these."""
    size = max(len(file.leading) for file in _KEY_FILES.values())
    if isinstance(source, bytes | bytearray | memoryview):
        leading = bytes(memoryview(source).cast("B")[:size])
    else:
        file, _ = open_regular(source)
        with file:
            leading = file.read(size)
    return next((name for name, kind in _KEY_FILES.items() if leading.startswith(kind.leading)), None)


def load_key(source: Source, parameters: Pathish | None = None) -> ProvingKey:
    """A key of any system, mapped; raises as :func:`system_of_key`, for what is wrong in the content, too.

    Args:
        parameters: the folder of the parameters of keys that have none within; default: the system's own.

    Raises:
        InvalidInput: a folder for a key that has its parameters within.
    """
    system = system_of_key(source)
    key: ProvingKey = system.load_key(source, *_folder(system, parameters))
    return key


def _folder(system: ProofSystem, parameters: Pathish | None) -> list[Pathish]:
    if parameters is None:
        return []
    if not system.parameters_apart:
        raise InvalidInput(f"parameters: a {system.name} key has them within")
    return [parameters]


def read_curve(source: Source) -> CurveParams:
    """The curve that a key is over; raises as :func:`system_of_key`."""
    return system_of_key(source).read_curve(source)


def read_verification_key(source: Source, parameters: Pathish | None = None) -> VerificationKey:
    """The verification key in a key's file, a proving or a verification key's; as :func:`load_key`."""
    system = system_of_key(source)
    key: VerificationKey = system.read_verification_key(source, *_folder(system, parameters))
    return key


@about("verification key")
def parse_verification_key(document: object, source: str = "verification key") -> VerificationKey:
    """A verification key from its document, which names its protocol.

    Raises:
        MalformedFile: a field is missing, out of range or off the curve.
        UnsupportedFile: a protocol or a curve that there is not.
    """
    name = document.get("protocol") if isinstance(document, Mapping) else None
    if isinstance(name, str) and name not in _SYSTEMS:
        expected = " or ".join(f"'{known}'" for known in _SYSTEMS)
        raise UnsupportedFile(source, "protocol", f"expected {expected}, found {shown(name)}")
    key: VerificationKey = system_of_document(document).parse_verification_key(document, source)
    return key


@about("verification key")
def verification_key_at(path: Pathish) -> VerificationKey:
    """A verification key from a file: a document as JSON, or a system's own kind of file.

    Raises:
        InvalidInput: the file cannot be opened.
        MalformedFile, UnsupportedFile: as :func:`parse_verification_key`.
    """
    if _own_kind(path) is not None:
        return read_verification_key(path)
    return parse_verification_key(read_json(path), str(path))


def system_of_document(document: object) -> ProofSystem:
    """The system that a document names as its protocol.

    One that names none that there is goes to the first system, which says what was expected.
    """
    name = document.get("protocol") if isinstance(document, Mapping) else None
    return system_named(name if isinstance(name, str) and name in _SYSTEMS else next(iter(_SYSTEMS)))
