"""Test helpers: containers apart and together, small powers-of-tau files, keys as plain integers."""

from __future__ import annotations

import struct
from collections.abc import Callable
from io import BytesIO

import numpy as np

from gpuprover import reference
from gpuprover.backend import Backend
from gpuprover.curves import CurveParams, Group
from gpuprover.formats import ptau
from gpuprover.formats.binfile import BinFileWriter
from gpuprover.limbs import generator, ints_to_words, words_to_g1, words_to_g2, words_to_ints
from gpuprover.systems.groth16 import key as zkey
from gpuprover.systems.groth16.key import ProvingKey, load_key

Sections = list[tuple[int, bytes]]


def unpack(data: bytes) -> tuple[bytes, int, Sections]:
    """A container's bytes -> magic, version, sections in the order of the file. ValueError if damaged."""
    try:
        magic, version, count = struct.unpack_from("<4sII", data)
        position, sections = 12, []
        for _ in range(count):
            kind, size = struct.unpack_from("<IQ", data, position)
            position += 12 + size
            if position > len(data):
                break
            sections.append((kind, data[position - size : position]))
    except struct.error as error:
        raise ValueError(str(error)) from None
    if position != len(data):
        raise ValueError("truncated or lengthened")
    return magic, version, sections


def pack(magic: bytes, version: int, sections: Sections) -> bytes:
    """Inverse of :func:`unpack`."""
    body = b"".join(struct.pack("<IQ", kind, len(content)) + content for kind, content in sections)
    return struct.pack("<4sII", magic, version, len(sections)) + body


def edit(data: bytes, section: int, change: Callable[[bytearray], bytes | bytearray | None]) -> bytes:
    """The container with one section changed: ``change`` edits its bytes in place or returns new ones."""
    magic, version, sections = unpack(data)
    result = []
    for kind, content in sections:
        if kind == section:
            buffer = bytearray(content)
            returned = change(buffer)
            content = bytes(buffer if returned is None else returned)
        result.append((kind, content))
    return pack(magic, version, result)


def put(offset: int, value: bytes) -> Callable[[bytearray], None]:
    """A change for :func:`edit`: overwrites bytes at an offset."""

    def change(buffer: bytearray) -> None:
        buffer[offset : offset + len(value)] = value

    return change


def reordered(data: bytes, order: Callable[[Sections], Sections]) -> bytes:
    """The container with its sections in another order, e.g. ``lambda s: s[::-1]``."""
    magic, version, sections = unpack(data)
    return pack(magic, version, order(sections))


def make_ptau(curve: CurveParams, power: int, tau: int, alpha: int, beta: int, backend: Backend) -> bytes:
    """A prepared powers-of-tau file from known secrets, without contributions.

    As in snarkjs's files, the largest Lagrange block lacks the term of τ^(2·2^power − 1).
    """
    r, n, limbs = curve.r, 1 << power, curve.scalar.limbs

    def lagrange(log_n: int) -> list[int]:
        size, omega = 1 << log_n, curve.scalar.root_of_unity(log_n)
        z, inverse_size = pow(tau, size, r) - 1, pow(size, -1, r)
        x, result = 1, []
        for _ in range(size):
            value = x * z * pow(tau - x, -1, r)
            if log_n == power + 1:
                value -= pow(tau, size - 1, r) * x
            result.append(value * inverse_size % r)
            x = x * omega % r
        return result

    powers = [1]
    for _ in range(2 * n - 2):
        powers.append(powers[-1] * tau % r)
    blocks = [value for log_n in range(power + 1) for value in lagrange(log_n)]

    def points(group: Group, scalars: list[int], factor: int = 1) -> bytes:
        words = ints_to_words((s * factor % r for s in scalars), limbs)
        return np.ascontiguousarray(backend.fixed_base_mul(group, generator(curve, group), words)).tobytes()

    header = struct.pack("<I", curve.base.bytes) + curve.q.to_bytes(curve.base.bytes, "little")
    sections = {
        ptau.HEADER: header + struct.pack("<II", power, power),
        ptau.TAU_G1: points(Group.G1, powers),
        ptau.TAU_G2: points(Group.G2, powers[:n]),
        ptau.ALPHA_TAU_G1: points(Group.G1, powers[:n], alpha),
        ptau.BETA_TAU_G1: points(Group.G1, powers[:n], beta),
        ptau.BETA_G2: points(Group.G2, [beta]),
        ptau.CONTRIBUTIONS: struct.pack("<I", 0),
        ptau.LAGRANGE_TAU_G1: points(Group.G1, blocks + lagrange(power + 1)),
        ptau.LAGRANGE_TAU_G2: points(Group.G2, blocks),
        ptau.LAGRANGE_ALPHA_TAU_G1: points(Group.G1, blocks, alpha),
        ptau.LAGRANGE_BETA_TAU_G1: points(Group.G1, blocks, beta),
    }
    file = BytesIO()
    writer = BinFileWriter(file, "ptau", 1, len(sections))
    for kind, content in sections.items():
        with writer.section(kind, len(content)) as section:
            section.write(content)
    return file.getvalue()


def reference_key(key: ProvingKey) -> reference.Groth16Key:
    """A key as the reference takes it."""
    curve, records = key.curve, key.coefficients
    undo = pow(curve.scalar.R, -2, curve.r)
    values = [v * undo % curve.r for v in words_to_ints(records["value"])]
    entries = list(zip(records["constraint"].tolist(), records["signal"].tolist(), values, strict=True))
    a, b = ([e for e, m in zip(entries, records["matrix"], strict=True) if m == which] for which in (0, 1))
    h = key.header
    return reference.Groth16Key(
        curve,
        key.log_domain,
        key.n_public,
        a,
        b,
        *words_to_g1(curve, np.stack([h.alpha1, h.beta1])),
        *words_to_g2(curve, np.stack([h.beta2, h.gamma2])),
        *words_to_g1(curve, h.delta1),
        *words_to_g2(curve, h.delta2),
        *(words_to_g1(curve, key.ic), words_to_g1(curve, key.a), words_to_g1(curve, key.b1)),
        words_to_g2(curve, key.b2),
        *(words_to_g1(curve, key.c), words_to_g1(curve, key.h)),
    )


def contributed(data: bytes, delta: int, backend: Backend, claims: int = 1) -> bytes:
    """A key after a contribution of δ, told by as many entries of section 10 as ``claims``.

    Only δ of the last entry is filled in: no proof of knowledge is in there.
    """
    curve = load_key(data).curve
    g1, g2 = curve.g1_words, curve.g2_words

    def scaled(group: Group, content: bytes, factor: int) -> bytes:
        points = np.frombuffer(content, dtype="<u8").reshape(-1, g1 if group is Group.G1 else g2)
        n = len(points)
        factors = ints_to_words([factor % curve.r] * n, curve.scalar.limbs)
        columns = np.arange(n, dtype=np.uint32)
        result = backend.points.sparse_combination(group, points, np.arange(n + 1), columns, factors)
        return np.ascontiguousarray(result).tobytes()

    def header(buffer: bytearray) -> None:
        at1, at2 = len(buffer) - 8 * (g1 + g2), len(buffer) - 8 * g2
        buffer[at1:at2] = scaled(Group.G1, bytes(buffer[at1:at2]), delta)
        buffer[at2:] = scaled(Group.G2, bytes(buffer[at2:]), delta)

    data = edit(data, zkey.HEADER, header)
    for section in (zkey.C, zkey.H):
        data = edit(data, section, lambda b: scaled(Group.G1, bytes(b), pow(delta, -1, curve.r)))
    words = load_key(data).header.delta1.tobytes()
    rest = bytes(8 * (2 * g1 + g2) + 64) + struct.pack("<II", 0, 4) + b"\x01\x02me"
    return edit(
        data,
        zkey.CONTRIBUTIONS,
        lambda b: bytes(b[:64]) + struct.pack("<I", claims) + (words + rest) * claims,
    )
