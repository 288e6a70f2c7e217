"""Circuits' files of both versions, and what of a key follows from a circuit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from gpuprover.errors import UnsupportedFile, about
from gpuprover.formats.json_files import parse_json
from gpuprover.midnight.architecture import Architecture
from gpuprover.midnight.encoding import PREFIX, Buffer, tagged
from gpuprover.midnight.ir import v2, v3
from gpuprover.midnight.ir.circuit import POINT, SCALAR, Circuit
from gpuprover.midnight.ir.codec import Place
from gpuprover.midnight.profile import V6, V7, Profile


class Version(NamedTuple):
    """One major version of the language.

    Attributes:
        tags: of its binary files.
        profile: the line of the network whose keys its circuits have.
        read, write: its binary files.
        parse, document: its JSON.
    """

    tags: tuple[str, ...]
    profile: Profile
    read: Callable[[bytes, str], Circuit]
    write: Callable[[Circuit], bytes]
    parse: Callable[[dict[str, Any], str], Circuit]
    document: Callable[[Circuit], dict[str, Any]]


VERSIONS = {
    2: Version((v2.TAG, v2.GENERIC_TAG), V6, v2.read_binary, v2.write_binary, v2.parse_document, v2.document),
    3: Version((v3.TAG,), V7, v3.read_binary, v3.write_binary, v3.parse_document, v3.document),
}
"""By the major version."""
_TAGS = {tag: version for version in VERSIONS.values() for tag in version.tags}


@about("circuit")
def read_circuit(data: Buffer, path: str = "circuit") -> Circuit:
    """A circuit's file, ``.bzkir`` or ``.zkir``.

    Args:
        path: the file's name for messages.

    Raises:
        MalformedFile: damaged; or it names a value that is not there, or has the wrong type.
        UnsupportedFile: a version, an operation or a type that is not known, or a hash of what none can hash.
            Operations and types that are known but cannot be executed here are read;
            :func:`gpuprover.midnight.ir.run.run` refuses them.
    """
    content = bytes(data)
    if content.startswith(PREFIX):
        tag, _ = tagged(content, tuple(_TAGS), path)
        return _TAGS[tag].read(content, path)
    document = parse_json(content, path)
    place = Place(path, "circuit")
    if not isinstance(document, dict):
        place.fail("expected a JSON object, or a file with a tag")
    number = document.get("version")
    if not isinstance(number, dict) or {type(number.get(name)) for name in ("major", "minor")} != {int}:
        place.of("version").fail("expected an object with the numbers 'major' and 'minor'")
    if (version := VERSIONS.get(number["major"])) is None:
        problem = f"expected major version {' or '.join(map(str, VERSIONS))} of ZKIR"
        raise UnsupportedFile(path, "version", problem)
    return version.parse(document, path)


def write_circuit(circuit: Circuit) -> bytes:
    """The ``.bzkir`` of a circuit."""
    return VERSIONS[circuit.version[0]].write(circuit)


def circuit_document(circuit: Circuit) -> dict[str, Any]:
    """The JSON of a circuit, the content of a ``.zkir``; immediates are short and never negative."""
    return VERSIONS[circuit.version[0]].document(circuit)


def profile_of(circuit: Circuit) -> Profile:
    """The line of the network whose keys and proofs the circuit has."""
    return VERSIONS[circuit.version[0]].profile


_CHIPS_OF_OPERATIONS = {
    **dict.fromkeys(("ec_add", "ec_mul", "ec_mul_generator"), ("jubjub",)),
    "hash_to_curve": ("jubjub", "poseidon"),
    "transient_hash": ("poseidon",),
    "persistent_hash": ("sha2_256",),
}
"""In ZKIR 3 points enable their chip by types of what enters a circuit, not by operations on them."""
_CHIPS_OF_OPERATIONS_V3 = {
    **{op: _CHIPS_OF_OPERATIONS[op] for op in ("hash_to_curve", "transient_hash", "persistent_hash")},
    "sha512": ("sha2_512",),
    "keccak256": ("keccak_256",),
}
_CHIPS_OF_CURVES = {"Secp256k1": "secp256k1", "Secp256r1": "p256", "Curve25519": "curve25519"}
_CHIPS_OF_TYPES = {
    **dict.fromkeys((POINT, SCALAR), "jubjub"),
    **{
        name: chip
        for name in v3.FIXED_TYPES
        for curve, chip in _CHIPS_OF_CURVES.items()
        if name.endswith(f"<{curve}>")
    },
}


def architecture_of(circuit: Circuit) -> Architecture:
    """The chips that a circuit's key has."""
    chips = {"poseidon"} if circuit.do_communications_commitment else set[str]()
    of_operations = _CHIPS_OF_OPERATIONS if circuit.version[0] == 2 else _CHIPS_OF_OPERATIONS_V3
    for instruction in circuit.instructions:
        chips.update(of_operations.get(instruction.op, ()))
    if circuit.version[0] == 3:
        chips.update(_CHIPS_OF_TYPES[name] for name in v3.entry_types(circuit) if name in _CHIPS_OF_TYPES)
    return Architecture(frozenset(chips), profile_of(circuit).range_columns)


def n_public(circuit: Circuit) -> int:
    """Public inputs of a circuit's statements."""
    declared = sum(
        len(instruction["inputs"]) if instruction.op == "impact" else instruction.op == "declare_pub_input"
        for instruction in circuit.instructions
    )
    return 1 + circuit.do_communications_commitment + declared
