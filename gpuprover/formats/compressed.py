"""Points of G1 as one coordinate and a sign: the 48 bytes of BLS12-381 that Zcash made usual.

x is big-endian; of its three spare bits the highest says that the form is this one, the next infinity (all
other bits are 0 then), the third whether y is the larger of the two roots. Source:
draft-irtf-cfrg-pairing-friendly-curves-11, appendix C. BN254 has no spare bits for it.
"""

from __future__ import annotations

from gpuprover.curves import AffineG1, CurveParams
from gpuprover.limbs import Words, g1_to_words, words_to_g1

COMPRESSED, INFINITY, LARGER = 0x80, 0x40, 0x20
"""Bits of the first byte."""


def compress_g1(curve: CurveParams, point: Words) -> bytes:
    """uint64[words], affine and Montgomery, on the curve -> the bytes of one coordinate.

    Raises:
        ValueError: the curve's coordinates have no three spare bits.
    """
    _check_curve(curve)
    (affine,) = words_to_g1(curve, point.reshape(1, -1))
    if affine is None:
        return bytes([COMPRESSED | INFINITY]) + bytes(curve.base.bytes - 1)
    x, y = affine
    data = bytearray(x.to_bytes(curve.base.bytes, "big"))
    data[0] |= COMPRESSED | (LARGER if y > curve.q - y else 0)
    return bytes(data)


def decompress_g1(curve: CurveParams, data: bytes) -> Words:
    """The bytes of a compressed point -> uint64[words], affine and Montgomery, on the curve.

    Each point has one form: everything else is refused. Whether it lies in the subgroup is not looked at.

    Raises:
        ValueError: the bytes are no point, in a few words that say why.
    """
    _check_curve(curve)
    size, q = curve.base.bytes, curve.q
    if len(data) != size:
        raise ValueError(f"expected {size} bytes, found {len(data)}")
    flags = data[0] & (COMPRESSED | INFINITY | LARGER)
    x = int.from_bytes(data, "big") - (flags << 8 * (size - 1))
    if not flags & COMPRESSED:
        raise ValueError("the point is not compressed")
    if flags & INFINITY:
        if x or flags & LARGER:
            raise ValueError("a point at infinity has other bits")
        return _words(curve, None)
    if x >= q:
        raise ValueError(f"a coordinate is not below the base prime of {curve.name}")
    square = (x * x * x + curve.b) % q
    # A root where there is one, as q is 3 mod 4.
    y = pow(square, (q + 1) // 4, q)
    if y * y % q != square:
        raise ValueError(f"not on the curve {curve.name}")
    if (y > q - y) != bool(flags & LARGER):
        y = q - y
    return _words(curve, (x, y))


def _words(curve: CurveParams, point: AffineG1) -> Words:
    return g1_to_words(curve, [point]).reshape(-1)


def has_compressed_form(curve: CurveParams) -> bool:
    """Whether its coordinates leave three bits of their bytes."""
    return 8 * curve.base.bytes - curve.base.bits >= 3


def _check_curve(curve: CurveParams) -> None:
    if not has_compressed_form(curve):
        raise ValueError(f"{curve.name} has no compressed form")
