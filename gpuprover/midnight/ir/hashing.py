"""Elements as bytes: what a circuit's SHA-256 absorbs, by the alignment that its instruction names."""

from __future__ import annotations

from collections.abc import Sequence

from gpuprover.errors import MalformedFile, UnsupportedFile
from gpuprover.midnight.encoding import Alignment, Atom
from gpuprover.midnight.ir.circuit import Instruction, step

CHUNK = 31
"""Bytes that one element holds."""
FIELD_BYTES = 32


def elements_of(atom: Atom) -> int:
    """Elements that an atom takes."""
    return -(-atom.length // CHUNK) if atom.kind == "bytes" else 1


def check_hash(instruction: Instruction, index: int, path: str) -> None:
    """Looks at the alignment and the number of inputs of a hash.

    Raises:
        UnsupportedFile: an alignment that no circuit can hash.
        MalformedFile: fewer inputs than the alignment takes.
    """
    needed = 0
    for atom in instruction["alignment"]:
        if not isinstance(atom, Atom) or atom.kind == "compress":
            problem = "alternatives and compressed values cannot be hashed in a circuit"
            raise UnsupportedFile(path, step(index, instruction.op), problem)
        needed += elements_of(atom)
    if needed > len(instruction["inputs"]):
        problem = f"expected {needed} inputs by the alignment, found {len(instruction['inputs'])}"
        raise MalformedFile(path, step(index, instruction.op), problem)


def aligned_bytes(alignment: Alignment, values: Sequence[int]) -> bytes | None:
    """The bytes of elements by an alignment that :func:`check_hash` took; None: an element does not fit.

    An atom of many bytes comes as elements of up to 31, the most significant first; the one that holds fewer
    is the first of them, and the last in the bytes. Elements behind the last atom are ignored.
    """
    data, at = bytearray(), 0
    for atom in alignment:
        assert isinstance(atom, Atom)
        if atom.kind == "field":
            data += values[at].to_bytes(FIELD_BYTES, "little")
            at += 1
            continue
        count = elements_of(atom)
        for i, value in enumerate(reversed(values[at : at + count])):
            size = min(CHUNK, atom.length - i * CHUNK)
            if value >> 8 * size:
                return None
            data += value.to_bytes(size, "little")
        at += count
    return bytes(data)
