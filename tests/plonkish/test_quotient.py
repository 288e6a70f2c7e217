"""Quotients by X^n − 1 on cosets, against division of polynomials in integers."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from gpuprover.backend import Backend
from gpuprover.columns import Expression, challenge, column
from gpuprover.curves import BN254
from gpuprover.devices import open_backend
from gpuprover.job import Job
from gpuprover.limbs import ints_to_words, words_to_ints
from gpuprover.plonkish.quotient import Numerator
from gpuprover.polynomial import Domain

R = BN254.r


def product(f: Sequence[int], g: Sequence[int]) -> list[int]:
    out = [0] * (len(f) + len(g) - 1)
    for i, x in enumerate(f):
        for j, y in enumerate(g):
            out[i + j] = (out[i + j] + x * y) % R
    return out


def difference(f: Sequence[int], g: Sequence[int]) -> list[int]:
    n = max(len(f), len(g))
    padded = ([*h, *([0] * (n - len(h)))] for h in (f, g))
    return [(x - y) % R for x, y in zip(*padded, strict=True)]


def vanishing(n: int) -> list[int]:
    return [R - 1, *([0] * (n - 1)), 1]


STEPS: Sequence[tuple[str, Expression]] = [
    ("first", challenge("y") * column("p") * column("q", 1)),
    ("whole", column("first") - column("s") * column("x")),
]
"""y·p·q(ωX) − s·X, in two steps."""
NUMERATOR = Numerator(STEPS)


class Problem:
    """Polynomials p, q and s for which y·p·q(ωX) − s·X is divisible, and the quotient."""

    def __init__(self, domain: Domain, lengths: tuple[int, int], rng: random.Random) -> None:
        n = domain.size
        self.y = rng.randrange(R)
        self.p, self.q = ([rng.randrange(R) for _ in range(length)] for length in lengths)
        rotated = [x * pow(domain.omega, i, R) % R for i, x in enumerate(self.q)]
        whole = [self.y * x % R for x in product(self.p, rotated)]
        rest = [sum(whole[i::n]) % R for i in range(n)]
        # mod X^n − 1, s·X is s, turned by one place: s makes up for what would remain.
        self.s = [*rest[1:], rest[0]]
        numerator = difference(whole, [0, *self.s])
        for i in reversed(range(n, len(numerator))):
            numerator[i - n] = (numerator[i - n] + numerator[i]) % R
        assert not any(numerator[:n])
        self.quotient = numerator[n:]

    def uploaded(self, backend: Backend) -> dict[str, object]:
        return {name: upload(backend, getattr(self, name)) for name in "pqs"}


def upload(backend: Backend, values: Sequence[int]) -> object:
    return backend.upload(ints_to_words(values, backend.curve.scalar.limbs))


@pytest.mark.parametrize("name", ["reference", "cpu"])
@pytest.mark.parametrize("cosets", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("chunks", [1, 2, 8])
def test_quotients(name: str, cosets: int, chunks: int, rng: random.Random) -> None:
    backend, domain = open_backend(name, BN254, Job(threads=2)), Domain(BN254.scalar, 4)
    n = domain.size
    # p·q has n + n·cosets coefficients at most, and 3 more with a known top.
    for more in (0, 3):
        whole = n * (cosets + 1) + more
        problem = Problem(domain, (whole - n - 1, n + 2), rng)
        quotient = problem.quotient
        assert len(quotient) == cosets * n + more
        known = upload(backend, quotient[cosets * n :]) if more else None
        given = problem.uploaded(backend)
        parts = NUMERATOR.quotient(backend, domain, given, {"y": problem.y}, cosets, chunks=chunks, top=known)
        got = [x for part in parts for x in words_to_ints(backend.download(part))]
        assert got == quotient[: cosets * n]
        # What was given stays.
        assert words_to_ints(backend.download(given["p"])) == problem.p


def test_more_cosets_than_there_are() -> None:
    backend = open_backend("reference", BN254, Job())
    with pytest.raises(ValueError, match="8 cosets"):
        NUMERATOR.quotient(backend, Domain(BN254.scalar, 3), {}, {}, 8)
