"""Points, scalars and arrays to test with.

Points of the prime-order groups come with their discrete logarithms to the generator's
base, so that the right answer of any sum costs one multiplication.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from gpuprover import reference
from gpuprover.backend import PointMath
from gpuprover.curves import CurveParams, FieldParams, Group
from gpuprover.devices import open_backend
from gpuprover.job import Job
from gpuprover.limbs import Words, points_to_words, words_to_points

N_MULTIPLES = 512


@lru_cache
def cpu_points(curve: CurveParams) -> PointMath:
    """What a GPU leaves to the CPU."""
    return open_backend("cpu", curve, Job(threads=1)).points


def spec(curve: CurveParams, group: Group) -> reference.EllipticCurve:
    return reference.g1(curve) if group is Group.G1 else reference.g2(curve)


def generator(curve: CurveParams, group: Group) -> Any:
    return curve.g1 if group is Group.G1 else curve.g2


@lru_cache
def _multiples(curve: CurveParams, group: Group) -> list[Any]:
    """0·G, 1·G, …"""
    points: list[Any] = [None]
    for _ in range(N_MULTIPLES - 1):
        points.append(spec(curve, group).add(points[-1], generator(curve, group)))
    return points


def point(curve: CurveParams, group: Group, log: int) -> Any:
    """log·G, cheap for |log| < N_MULTIPLES."""
    if abs(log) >= N_MULTIPLES:
        return spec(curve, group).scalar_mul(generator(curve, group), log)
    P = _multiples(curve, group)[abs(log)]
    return P if log >= 0 else spec(curve, group).neg(P)


def to_words(curve: CurveParams, group: Group, points: Sequence[Any]) -> Words:
    return points_to_words(curve, group, points)


def from_words(curve: CurveParams, group: Group, words: Words) -> list[Any]:
    return words_to_points(curve, group, words)


def row(curve: CurveParams, group: Group, point: Any) -> Words:
    """A point in plain integers -> uint64[words]."""
    return to_words(curve, group, [point])[0]


def plain(curve: CurveParams, group: Group, words: Words) -> Any:
    """Inverse of :func:`row`; the coordinates must be below q."""
    assert (words.dtype, words.shape) == (np.uint64, (group.words(curve),))
    (found,) = from_words(curve, group, words)
    assert np.array_equal(row(curve, group, found), words)
    return found


def point_words(curve: CurveParams, group: Group, logs: Sequence[int]) -> Words:
    return to_words(curve, group, [point(curve, group, k) for k in logs])


def combination(curve: CurveParams, group: Group, logs: Sequence[int], scalars: Sequence[int]) -> Any:
    """Σ scalars[i]·logs[i]·G."""
    total = sum(k * s for k, s in zip(logs, scalars, strict=True)) % curve.r
    return point(curve, group, min(total, total - curve.r, key=abs))


def random_logs(rng: random.Random, n: int) -> list[int]:
    return [rng.randrange(1, N_MULTIPLES) * rng.choice((1, -1)) for _ in range(n)]


Logs = Callable[[random.Random, int], list[int]]

POINT_KINDS: dict[str, Logs] = {
    "random": random_logs,
    "all equal": lambda rng, n: [rng.randrange(1, N_MULTIPLES)] * n,
    "P and -P": lambda rng, n: [(-1) ** i * 7 for i in range(n)],
    "all at infinity": lambda rng, n: [0] * n,
    "infinity first and last": lambda rng, n: [0, *random_logs(rng, n - 2), 0][:n],
    "half at infinity": lambda rng, n: [k if rng.random() < 0.5 else 0 for k in random_logs(rng, n)],
    "P, 2P, 3P": lambda rng, n: [1 + i % 3 for i in range(n)],
}

Scalars = Callable[[random.Random, int, int], list[int]]

SCALAR_KINDS: dict[str, Scalars] = {
    "random": lambda rng, r, n: [rng.randrange(r) for _ in range(n)],
    "zero": lambda rng, r, n: [0] * n,
    "one": lambda rng, r, n: [1] * n,
    "zero and one": lambda rng, r, n: [rng.randrange(2) for _ in range(n)],
    "mostly zero": lambda rng, r, n: [rng.randrange(r) if i == n // 2 else 0 for i in range(n)],
    "r - 1": lambda rng, r, n: [r - 1] * n,
    "near r": lambda rng, r, n: [r - 1 - rng.randrange(4) for _ in range(n)],
    "around r / 2": lambda rng, r, n: [r // 2 + rng.randrange(-2, 3) for _ in range(n)],
    "all equal": lambda rng, r, n: [rng.randrange(r)] * n,
    "half equal": lambda rng, r, n: [3 << 200 if i % 2 else rng.randrange(r) for i in range(n)],
    "one bit set": lambda rng, r, n: [1 << rng.randrange(r.bit_length() - 1) for _ in range(n)],
    "powers of two": lambda rng, r, n: [1 << i % (r.bit_length() - 1) for i in range(n)],
    "below powers of two": lambda rng, r, n: [(1 << i % r.bit_length()) - 1 for i in range(n)],
    "long runs of ones": lambda rng, r, n: [
        ((1 << rng.randrange(1, r.bit_length() - 1)) - 1) & ~((1 << rng.randrange(200)) - 1) for _ in range(n)
    ],
    "16 bits": lambda rng, r, n: [rng.randrange(1 << 16) for _ in range(n)],
    "64 bits and minus 64 bits": lambda rng, r, n: [
        x if i % 2 else r - x for i in range(n) for x in [rng.randrange(1, 1 << 64)]
    ],
}


def field_edges(p: int) -> list[int]:
    """Values at which arithmetic mod p goes wrong first."""
    R = 1 << 64 * -(-p.bit_length() // 64)
    edges = [
        0,
        1,
        2,
        p - 1,
        p - 2,
        p // 2,
        p // 2 + 1,
        R % p,
        R * R % p,
        pow(R, -1, p),
        (1 << 64) - 1,
        1 << 64,
    ]
    return [*edges, (1 << (p.bit_length() - 1)) - 1, 1 << (p.bit_length() - 1)]


def fast_dft(field: FieldParams, x: Sequence[int], omega: int, shift: int = 1) -> list[int]:
    """``reference.dft`` by halves, for sizes at which n² is too much; test_reference.py compares the two."""
    if len(x) == 1:
        return [x[0]]
    p, half = field.modulus, len(x) // 2
    even, odd = (fast_dft(field, x[i::2], omega * omega % p, shift * shift % p) for i in (0, 1))
    twiddles = [shift]
    for _ in range(len(x) - 1):
        twiddles.append(twiddles[-1] * omega % p)
    return [(even[j % half] + twiddles[j] * odd[j % half]) % p for j in range(len(x))]


def unaligned(words: Any) -> Any:
    """A read-only view of the same values at an odd address, as in a mapped file."""
    data = b"x" + np.ascontiguousarray(words).tobytes()
    view = np.frombuffer(data, dtype=words.dtype, offset=1).reshape(words.shape)
    assert view.size == 0 or (view.ctypes.data % 2 and not view.flags.writeable)
    return view


def square_root(curve: CurveParams, group: Group, a: Any) -> Any:
    """A square root in the group's coordinate field, or None. Both q ≡ 3 (mod 4)."""
    q = curve.q
    if group is Group.G1:
        root = pow(a, (q + 1) // 4, q)
        return root if root * root % q == a else None
    F = reference.fq2(curve)
    norm = square_root(curve, Group.G1, (a[0] ** 2 + a[1] ** 2) % q)
    if norm is None:
        return None
    for sign in (1, -1):
        half = (a[0] + sign * norm) * pow(2, -1, q) % q
        x = square_root(curve, Group.G1, half)
        if x:
            candidate = (x, a[1] * pow(2 * x, -1, q) % q)
            if F.mul(candidate, candidate) == a:
                return candidate
    return None


def curve_point(curve: CurveParams, group: Group, rng: random.Random) -> Any:
    """A point of the whole curve: outside the subgroup but for odds of 1 in its cofactor."""
    E = spec(curve, group)
    while True:
        x = rng.randrange(curve.q) if group is Group.G1 else (rng.randrange(curve.q), rng.randrange(curve.q))
        F = E.field
        y = square_root(curve, group, F.add(F.mul(F.mul(x, x), x), E.b))
        if y is not None:
            return x, y


def has_cofactor(curve: CurveParams, group: Group) -> bool:
    return curve.group(group).cofactor > 1


def whole_order(curve: CurveParams, group: Group) -> int:
    """Points of the whole curve, or of the twist."""
    return curve.group(group).cofactor * curve.r
