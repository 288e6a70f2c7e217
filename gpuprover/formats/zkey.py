"""snarkjs's container of proving keys (.zkey): whose it is, and over which curve.

Section 1 is the protocol's number, section 2 begins with the primes of the base and the scalar field. All
else is the protocol's: see the ``key`` modules of :mod:`gpuprover.systems`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from gpuprover.curves import PAIRING_CURVES, CurveParams
from gpuprover.errors import UnsupportedFile, about
from gpuprover.formats.binfile import BinFile, Cursor, Source

PROTOCOL, HEADER = 1, 2
VERSION = 1
PROTOCOLS = {1: "groth16", 2: "plonk", 10: "fflonk"}
"""Names of the protocols by their number in section 1."""
_SECTIONS = {PROTOCOL: "protocol", HEADER: "header"}
IDENTIFIERS = {name: identifier for identifier, name in PROTOCOLS.items()}


@about("key")
def identify(source: Source, expected: Collection[str]) -> str:
    """The name of the protocol that a key is for, one of those expected.

    Raises:
        InvalidInput: the file cannot be opened.
        MalformedFile: it is no key, or damaged.
        UnsupportedFile: another version or protocol.
    """
    return _protocol(_opened(source, _SECTIONS), expected)


@about("key")
def read_curve(source: Source) -> CurveParams:
    """The curve that a key is over. Raises as :func:`identify`."""
    file = _opened(source, _SECTIONS)
    return _curve(file, file.cursor(HEADER))


def open_header(
    source: Source, protocol: str, sections: Mapping[int, str]
) -> tuple[BinFile, Cursor, CurveParams]:
    """The file, a key of this protocol, its header from behind the primes on, and the curve.

    Raises:
        InvalidInput, MalformedFile, UnsupportedFile: as :func:`identify`, or another curve.
    """
    file = _opened(source, sections)
    _protocol(file, [protocol])
    header = file.cursor(HEADER)
    return file, header, _curve(file, header)


def _opened(source: Source, sections: Mapping[int, str]) -> BinFile:
    return BinFile(source, "zkey", range(1, VERSION + 1), sections)


def _protocol(file: BinFile, expected: Collection[str]) -> str:
    cursor = file.cursor(PROTOCOL)
    identifier = cursor.u32("the protocol id")
    cursor.end()
    name = PROTOCOLS.get(identifier)
    if name is None or name not in expected:
        found = f"protocol id {identifier}" if name is None else f"a {name} key"
        problem = f"expected a {' or '.join(expected)} key, found {found}"
        raise UnsupportedFile(file.path, file.name(PROTOCOL), problem)
    return name


def _curve(file: BinFile, header: Cursor) -> CurveParams:
    base_size, q = header.prime("the base field's prime")
    scalar_size, r = header.prime("the scalar field's prime")
    for curve in PAIRING_CURVES:
        if (curve.q, curve.r) == (q, r):
            if (base_size, scalar_size) != (curve.base.bytes, curve.scalar.bytes):
                header.fail(
                    f"elements of {base_size} and {scalar_size} bytes, expected "
                    f"{curve.base.bytes} and {curve.scalar.bytes} for {curve.name}"
                )
            return curve
    known = ", ".join(c.name for c in PAIRING_CURVES)
    raise UnsupportedFile(file.path, header.part, f"primes of no known curve ({known})")
