"""The suite that every backend passes, continued: polynomials and columns, against plain integers.

Beside the reference every method is checked against a definition that is written out here.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gpuprover.backend import Backend, Term
from gpuprover.columns import challenge, column, compile_formula, constant, fold
from gpuprover.curves import CurveParams, Group
from gpuprover.errors import Cancelled
from gpuprover.job import Job
from gpuprover.limbs import field_to_words, ints_to_words, words_to_ints, words_to_points
from gpuprover.polynomial import Coset, Direction, Domain, Order
from tests.conftest import OpenBackend, Scale
from tests.support.samples import combination, fast_dft, field_edges, point_words, random_logs

pytestmark = pytest.mark.both_paths


def upload(backend: Backend, values: list[int]) -> Any:
    return backend.upload(ints_to_words(values, backend.curve.scalar.limbs))


def download(backend: Backend, v: Any) -> list[int]:
    return words_to_ints(backend.download(v))


def random_scalars(backend: Backend, rng: random.Random, n: int) -> list[int]:
    """Uniform, with an edge value among ten."""
    r = backend.curve.r
    edges = field_edges(r)
    return [rng.choice(edges) if rng.random() < 0.1 else rng.randrange(r) for _ in range(n)]


def value(polynomial: list[int], x: int, r: int) -> int:
    total = 0
    for c in reversed(polynomial):
        total = (total * x + c) % r
    return total


# Formulas ----------------------------------------------------------------------------

Cell = Callable[[int], int]
"""The value of an expression on a row."""


class Table:
    """Random columns of n rows, and random expressions over them with their values."""

    def __init__(self, backend: Backend, rng: random.Random, n: int, step: int) -> None:
        self.rng, self.n, self.r = rng, n, backend.curve.r
        periods = [m for m in (1, 2, 3, 4, 8, 16, n // 2) if m and n % m == 0]
        lengths = [n, n, n, rng.choice(periods), rng.choice(periods)]
        self.values = {f"c{i}": random_scalars(backend, rng, m) for i, m in enumerate(lengths)}
        self.vectors = {name: upload(backend, v) for name, v in self.values.items()}
        self.challenges = {name: random_scalars(backend, rng, 1)[0] for name in ("y", "z")}
        self.step = step

    def leaf(self) -> tuple[Any, Cell]:
        kind = self.rng.random()
        if kind < 0.1:
            k = self.rng.choice([0, 1, -1, 2, 5, self.r - 1, 3 * self.r + 7, -(2**300)])
            return constant(k), lambda i: k
        if kind < 0.25:
            name = self.rng.choice(list(self.challenges))
            return challenge(name), lambda i: self.challenges[name]
        name = self.rng.choice(list(self.values))
        t = self.rng.choice([0, 0, 0, 1, -1, 2, 3, -5, self.n, self.n + 1])
        v = self.values[name]
        return column(name, t), lambda i: v[(i + t * self.step) % len(v)]

    def expression(self, size: int) -> tuple[Any, Cell]:
        made = [self.leaf() for _ in range(4)]
        while len(made) < size:
            # Mostly what is new: long chains, in which a value's range would grow.
            x, f = self.rng.choice(made[-3:])
            y, g = self.rng.choice([*made, self.leaf()])
            if self.rng.random() < 0.5:
                (x, f), (y, g) = (y, g), (x, f)
            made.append(self.combined(self.rng.choice("+-**"), x, f, y, g))
        return made[-1]

    def combined(self, op: str, x: Any, f: Cell, y: Any, g: Cell) -> tuple[Any, Cell]:
        known: dict[int, int] = {}  # or a value that is used twice doubles the work

        def remembered(h: Cell) -> Cell:
            def at(i: int) -> int:
                if i not in known:
                    known[i] = h(i) % self.r
                return known[i]

            return at

        if op == "+":
            return x + y, remembered(lambda i: f(i) + g(i))
        if op == "-":
            return x - y, remembered(lambda i: f(i) - g(i))
        return x * y, remembered(lambda i: f(i) * g(i))


@pytest.mark.parametrize("n", [1, 2, 7, 8, 48, 250, 3000])
def test_columns_random_formulas(opened: OpenBackend, scale: Scale, rng: random.Random, n: int) -> None:
    n = min(n, scale.large)
    backend = opened(Job(threads=rng.choice([1, 2, 3])))
    for size, step in ((4, 1), (12, 1), (40, rng.choice([2, 4, 8])), (150, 1)):
        table = Table(backend, rng, n, step)
        made = [table.expression(size) for _ in range(3)]
        whole = column("c0"), lambda i, v=table.values["c0"]: v[i]
        made.append(whole)  # a result that is a column, and one column of n rows in each formula
        formula = compile_formula([x for x, _ in made])
        before = {name: download(backend, v) for name, v in table.vectors.items()}
        results = backend.evaluate(formula, table.vectors, table.challenges, step)
        assert len(results) == len(made)
        rows = range(n) if n < 500 else sorted({0, 1, n - 2, n - 1, *rng.sample(range(n), 100)})
        for result, (_, f) in zip(results, made, strict=True):
            got = download(backend, result)
            assert len(got) == n
            assert [got[i] for i in rows] == [f(i) % table.r for i in rows]
        assert {name: download(backend, v) for name, v in table.vectors.items()} == before


def test_columns_extreme_values(backend: Backend) -> None:
    """Sums and products of the largest value, long enough to leave any range that is not looked after."""
    r = backend.curve.r
    n = 24
    a, b = column("a"), column("b")
    grown = [sum([a] * 60, constant(0)), -sum([a] * 60, constant(0)), (a - b) ** 64, (a + a + a) * (-b - b)]
    square = (a + b) * (b + a)
    for _ in range(9):
        square = square * square - (square + square) * b
    grown.append(square)
    grown.append(fold([a - b, b - a, a * a - b, -a], challenge("y")))

    def values(x: int, y: int, k: int) -> list[int]:
        s = (x + y) ** 2
        for _ in range(9):
            s = (s * s - 2 * s * y) % r
        folded = ((x - y) * k**3 + (y - x) * k**2 + (x * x - y) * k - x) % r
        return [60 * x % r, -60 * x % r, pow(x - y, 64, r), 3 * x * -2 * y % r, s, folded]

    formula = compile_formula(grown)
    for x, y, k in ((r - 1, r - 1, r - 1), (r - 1, 0, r - 1), (0, r - 1, 1), (0, 0, 0), (1, r - 1, r - 2)):
        columns = {"a": upload(backend, [x] * n), "b": upload(backend, [y])}
        for result, want in zip(backend.evaluate(formula, columns, {"y": k}), values(x, y, k), strict=True):
            assert download(backend, result) == [want] * n


def test_columns_rows_of_a_larger_domain(backend: Backend, rng: random.Random) -> None:
    """A quotient: the numerator of a running product on four times the rows, over X^n − 1 of period four."""
    r, field = backend.curve.r, backend.curve.scalar
    n, factor = 8, 4
    small, large = Domain(field, 3), Domain(field, 5)
    g = field.non_residue
    z = random_scalars(backend, rng, n)
    ratio = [z[(i + 1) % n] * pow(z[i], -1, r) % r if z[i] else 0 for i in range(n)]
    z = [x or 1 for x in z]
    ratio = [z[(i + 1) % n] * pow(z[i], -1, r) % r for i in range(n)]
    on_coset = {}
    for name, values in (("z", z), ("ratio", ratio)):
        coefficients = backend.ntt(upload(backend, values), small, Direction.INVERSE)
        (on_coset[name],) = backend.extend(coefficients, large, [g])
    inverses = [pow(pow(g * pow(large.omega, i, r), n, r) - 1, -1, r) for i in range(factor)]
    on_coset["inverse"] = upload(backend, inverses)
    formula = compile_formula([(column("z", 1) - column("z") * column("ratio")) * column("inverse")])
    (quotient,) = backend.evaluate(formula, on_coset, step=factor)
    coefficients = download(backend, backend.ntt(quotient, large, Direction.INVERSE, coset=g))
    assert coefficients[n:] == [0] * (3 * n)
    x = rng.randrange(r)
    values = [value(download(backend, backend.ntt(upload(backend, v), small, Direction.INVERSE)), y, r)
              for v, y in ((z, x * small.omega), (z, x), (ratio, x))]  # fmt: skip
    numerator = values[0] - values[1] * values[2]
    assert value(coefficients, x, r) * (pow(x, n, r) - 1) % r == numerator % r


def test_columns_of_wrong_lengths_are_refused(backend: Backend) -> None:
    formula = compile_formula([column("a") * column("b") + challenge("y")])
    a, b = upload(backend, [1, 2, 3, 4]), upload(backend, [1, 2, 3])
    with pytest.raises(ValueError, match="'b'"):
        backend.evaluate(formula, {"a": a, "b": b}, {"y": 1})
    with pytest.raises(ValueError, match="'b'"):
        backend.evaluate(formula, {"a": a}, {"y": 1})
    with pytest.raises(ValueError, match="'y'"):
        backend.evaluate(formula, {"a": a, "b": a})
    empty = upload(backend, [])
    assert download(backend, backend.evaluate(formula, {"a": empty, "b": empty}, {"y": 1})[0]) == []


# Polynomials -------------------------------------------------------------------------


def test_columns_combine(backend: Backend, scale: Scale, rng: random.Random) -> None:
    r = backend.curve.r
    for lengths in ([0], [1], [5, 9, 3], [8] * 4, [0, 7, 0], [16, 1, 40], [min(3000, scale.large), 2, 17]):
        polynomials = [random_scalars(backend, rng, n) for n in lengths]
        vectors = [upload(backend, p) for p in polynomials]
        factors = [rng.choice([0, 1, -1, r, 2**280, rng.randrange(r)]) for _ in lengths]
        shifts = [rng.choice([0, 0, 1, 4, -1, -3, 30, -100]) for _ in lengths]
        natural = max(max(0, n + s) for n, s in zip(lengths, shifts, strict=True))
        for length in (None, natural, natural + 9, natural // 2, 0):
            want = [0] * (natural if length is None else length)
            for p, k, s in zip(polynomials, factors, shifts, strict=True):
                for i, c in enumerate(p):
                    if 0 <= i + s < len(want):
                        want[i + s] = (want[i + s] + k * c) % r
            terms = [Term(*t) for t in zip(vectors, factors, shifts, strict=True)]
            assert download(backend, backend.combine(terms, length)) == want, (lengths, shifts, length)
        assert [download(backend, v) for v in vectors] == polynomials
    assert download(backend, backend.combine([], 3)) == [0, 0, 0]
    v = upload(backend, [1, 2])
    assert download(backend, backend.combine([Term(v), Term(v, -1, 1)])) == [1, 1, r - 2]
    with pytest.raises(ValueError, match="length"):
        backend.combine([])


@pytest.mark.parametrize("log_n", [0, 3, 6, 9])
@pytest.mark.parametrize("generator", [None, 7])
def test_columns_extend(
    backend: Backend, scale: Scale, rng: random.Random, log_n: int, generator: int | None
) -> None:
    domain = Domain(backend.curve.scalar, min(log_n, scale.log_ntt), generator)
    r, n = backend.curve.r, domain.size
    cosets: list[Coset | int] = [Coset.NONE, Coset.ODD, 7, rng.randrange(1, r), 1]
    for length in {0, 1, n // 2, n, n + 3, 3 * n + 1}:
        polynomial = random_scalars(backend, rng, length)
        v = upload(backend, polynomial)
        found = backend.extend(v, domain, cosets)
        assert len(found) == len(cosets)
        for coset, values in zip(cosets, found, strict=True):
            g = domain.shift(coset)
            got = download(backend, values)
            assert len(got) == n
            for i in {0, n - 1, rng.randrange(n), rng.randrange(n)}:
                assert got[i] == value(polynomial, g * pow(domain.omega, i, r) % r, r)
        assert download(backend, v) == polynomial


@pytest.mark.parametrize("log_n", [0, 1, 4, 9])
def test_columns_transforms_of_two_generators(
    backend: Backend, scale: Scale, rng: random.Random, log_n: int
) -> None:
    """circom's roots and halo2's, in turns, on cosets of any shift: each with its own tables."""
    field = backend.curve.scalar
    r = field.modulus
    log_n = min(log_n, scale.log_ntt)
    domains = [Domain(field, log_n, generator) for generator in (None, 7, 5, 10)]
    assert domains[0].family == domains[2].family
    assert len({domain.family for domain in domains}) == 3
    assert log_n < 6 or len({domain.omega for domain in domains}) == 3  # in smaller ones the roots may agree
    x = random_scalars(backend, rng, 1 << log_n)
    for domain in domains:
        assert pow(domain.omega, domain.size, r) == 1
        assert log_n == 0 or pow(domain.omega, domain.size // 2, r) == r - 1
        for coset in (Coset.NONE, Coset.ODD, 7, rng.randrange(1, r)):
            y = fast_dft(field, x, domain.omega, domain.shift(coset))
            v = upload(backend, x)
            assert backend.ntt(v, domain, Direction.FORWARD, coset=coset) is v
            assert download(backend, v) == y
            assert download(backend, backend.ntt(v, domain, Direction.INVERSE, coset=coset)) == x
            backend.ntt(v, domain, Direction.FORWARD, Order.NATURAL_TO_REVERSED, coset)
            backend.ntt(v, domain, Direction.INVERSE, Order.REVERSED_TO_NATURAL, coset)
            assert download(backend, v) == x
    with pytest.raises(ValueError, match="coset"):
        backend.ntt(upload(backend, x), domains[0], Direction.FORWARD, coset=r)


def test_columns_values(opened: OpenBackend, scale: Scale, rng: random.Random) -> None:
    for threads in (1, 3):
        backend = opened(Job(threads=threads))
        r = backend.curve.r
        polynomials = [random_scalars(backend, rng, min(n, scale.large)) for n in (0, 1, 2, 8, 33, 100, 9001)]
        polynomials.append([r - 1] * 200)
        points = [0, 1, r - 1, rng.randrange(r)]
        queries = [(p, x) for p in polynomials for x in points]
        vectors = {id(p): upload(backend, p) for p in polynomials}
        got = backend.values_at([(vectors[id(p)], x) for p, x in queries])
        assert got == [value(p, x, r) for p, x in queries]
        assert backend.values_at([]) == []


@pytest.mark.parametrize("degree", [1, 2, 3, 8, 13, 64, 500])
def test_columns_division(opened: OpenBackend, scale: Scale, rng: random.Random, degree: int) -> None:
    """v = q·(X^m − β) + rem, coefficient by coefficient; long enough for three threads to share rows."""
    longest = min(13_001 if degree < 3 else 9001, scale.large)
    for threads in (1, 3):
        backend = opened(Job(threads=threads))
        r = backend.curve.r
        for n in {0, 1, degree - 1, degree, degree + 1, 2 * degree + 5, longest}:
            v = random_scalars(backend, rng, n)
            for root in (0, 1, r - 1, rng.randrange(r)) if n < 20 else [rng.randrange(r)]:
                dividend = upload(backend, v)
                quotient, remainder = (download(backend, x) for x in backend.divide(dividend, root, degree))
                assert len(quotient) == max(0, n - degree)
                assert len(remainder) == degree
                product = remainder + quotient if quotient else remainder
                for i, q in enumerate(quotient):
                    product[i] = (product[i] - root * q) % r
                assert product == v + [0] * (len(product) - n)
                assert degree > 1 or remainder == [value(v, root, r)]
                assert download(backend, dividend) == v


def test_columns_exact_division(backend: Backend, rng: random.Random) -> None:
    """What vanishes on a domain is a multiple of X^n − 1, and nothing is left over."""
    domain = Domain(backend.curve.scalar, 4)
    factor = random_scalars(backend, rng, 37)
    f = upload(backend, factor)
    multiple = backend.combine([Term(f, -1), Term(f, 1, domain.size)])
    (on_domain,) = backend.extend(multiple, domain, [Coset.NONE])
    assert download(backend, on_domain) == [0] * domain.size
    quotient, remainder = backend.divide(multiple, 1, domain.size)
    assert download(backend, quotient) == factor
    assert download(backend, remainder) == [0] * domain.size


def test_columns_running_product(opened: OpenBackend, scale: Scale, rng: random.Random) -> None:
    for threads in (1, 3):
        backend = opened(Job(threads=threads))
        r = backend.curve.r
        inverses = {x: pow(x, -1, r) for x in (rng.randrange(1, r) for _ in range(99))}
        for n in (0, 1, 2, 7, 8, 9, 65, min(threads * 4097, scale.large)):
            a, b = [rng.randrange(1, r) for _ in range(n)], rng.choices([*inverses], k=n)
            start = rng.choice([1, r - 1, rng.randrange(r)])
            z = [start]
            for x, y in zip(a, b, strict=True):
                z.append(z[-1] * x * inverses[y] % r)
            u, v = upload(backend, a), upload(backend, b)
            assert download(backend, backend.running_product(u, v, start)) == z
            assert (download(backend, u), download(backend, v)) == (a, b)
            assert download(backend, backend.running_product(u, v))[:1] == [1]


def test_columns_running_product_of_a_permutation(backend: Backend, scale: Scale, rng: random.Random) -> None:
    """It ends with 1 if and only if the values are the same, in another order."""
    r, n = backend.curve.r, min(1000, scale.large)
    a = [rng.randrange(1, r) for _ in range(n)]
    b = rng.sample(a, n)
    assert download(backend, backend.running_product(upload(backend, a), upload(backend, b)))[-1] == 1
    b[n // 3] = b[n // 3] * 2 % r
    assert download(backend, backend.running_product(upload(backend, a), upload(backend, b)))[-1] != 1


def test_columns_running_product_with_zeros(backend: Backend, scale: Scale, rng: random.Random) -> None:
    r, n = backend.curve.r, min(600, scale.large)
    for place in (0, 7, n // 2, n - 1):
        for zero_of in range(3):
            a, b = ([rng.randrange(1, r) for _ in range(n)] for _ in range(2))
            if zero_of != 1:
                a[place] = 0
            if zero_of != 0:
                b[place] = 0
            got = download(backend, backend.running_product(upload(backend, a), upload(backend, b)))
            want = [1]
            for x, y in zip(a[:place], b[:place], strict=True):
                want.append(want[-1] * x * pow(y, -1, r) % r)
            assert got == want + [0] * (n - place)


def test_columns_running_product_of_two_lengths_is_refused(backend: Backend) -> None:
    with pytest.raises(ValueError, match="2 and 1"):
        backend.running_product(upload(backend, [1, 2]), upload(backend, [1]))


def test_columns_powers(backend: Backend, rng: random.Random) -> None:
    r = backend.curve.r
    for n in (0, 1, 9, 50):
        for base, factor in ((1, 1), (0, 3), (5, 0), (rng.randrange(r), rng.randrange(r))):
            got = download(backend, backend.powers(n, base, factor))
            assert got == [factor * pow(base, i, r) % r for i in range(n)]


def test_columns_gather(opened: OpenBackend, scale: Scale, rng: random.Random) -> None:
    for threads in (1, 3):
        backend = opened(Job(threads=threads))
        values = random_scalars(backend, rng, 50)
        v = upload(backend, values)
        for n in (0, 1, 50, min(9001, scale.large)):
            indices = [rng.randrange(50) for _ in range(n)]
            array = np.array(indices, dtype=np.uint32)
            array.flags.writeable = False
            assert download(backend, backend.gather(v, array)) == [values[i] for i in indices]
        for bad in (50, 2**32 - 1):
            with pytest.raises(IndexError):
                backend.gather(v, np.array([3, bad], dtype=np.uint32))


def test_columns_signals(backend: Backend, scale: Scale, rng: random.Random) -> None:
    """Combinations of earlier elements, from records of a file."""
    field, r = backend.curve.scalar, backend.curve.r
    record = np.dtype([("left", "<u4"), ("right", "<u4"), ("f", "<u8", 4), ("g", "<u8", 4)])
    for known, count in ((1, 0), (3, 1), (20, min(500, scale.large))):
        values = random_scalars(backend, rng, known)
        rows = np.zeros(count, dtype=record)
        expected = [0, *values]
        for i in range(count):
            left, right = rng.randrange(len(expected)), rng.randrange(len(expected))
            f, g = random_scalars(backend, rng, 2)
            rows[i] = left, right, *field_to_words(field, [f, g])
            expected.append((f * expected[left] + g * expected[right]) % r)
        # Anywhere in memory.
        room = np.zeros(4 + rows.nbytes, dtype=np.uint8)
        room[4:] = rows.view(np.uint8)
        records = room[4:].view(record)

        def made(records: Any, values: list[int] = values) -> Any:
            words = ints_to_words(values, field.limbs)
            return backend.signals(words, records["left"], records["right"], records["f"], records["g"])

        assert download(backend, made(records)) == expected
        if count:
            for name in ("left", "right"):
                bad = records.copy()
                bad[name][count - 1] = known + count
                with pytest.raises(IndexError):
                    made(bad)


def test_columns_interleave(backend: Backend, rng: random.Random) -> None:
    r = backend.curve.r
    for lengths in ([5], [0, 0], [4, 4, 4, 4], [3, 7, 0], [8] * 8):
        polynomials = [random_scalars(backend, rng, n) for n in lengths]
        k, x = len(lengths), rng.randrange(r)
        joined = backend.interleave([upload(backend, p) for p in polynomials])
        got = download(backend, joined)
        assert len(got) == k * max(lengths)
        assert value(got, x, r) == sum(pow(x, j, r) * value(p, pow(x, k, r), r)
                                       for j, p in enumerate(polynomials)) % r  # fmt: skip
        parts = [download(backend, part) for part in backend.deinterleave(joined, k)]
        assert parts == [p + [0] * (max(lengths) - len(p)) for p in polynomials]
    with pytest.raises(ValueError, match="5"):
        backend.deinterleave(upload(backend, [1, 2, 3, 4, 5]), 2)


def test_columns_cosets_of_a_domain_make_a_larger_one(backend: Backend, rng: random.Random) -> None:
    """The values on 4 cosets of n points, in turns, are those on one coset of 4n points."""
    field = backend.curve.scalar
    small, large = Domain(field, 3, 7), Domain(field, 5, 7)
    v = upload(backend, random_scalars(backend, rng, 29))
    g, r = 7, backend.curve.r
    parts = backend.extend(v, small, [g * pow(large.omega, j, r) % r for j in range(4)])
    (whole,) = backend.extend(v, large, [g])
    assert download(backend, backend.interleave(parts)) == download(backend, whole)
    for part, again in zip(parts, backend.deinterleave(whole, 4), strict=True):
        assert download(backend, part) == download(backend, again)


@pytest.mark.long_in_integers
def test_columns_msm_of_polynomials_shorter_than_the_srs(
    backend: Backend, curve: CurveParams, scale: Scale, rng: random.Random
) -> None:
    n = min(40, scale.edge_points)
    logs = random_logs(rng, n)
    bases = backend.prepare_bases(Group.G1, point_words(curve, Group.G1, logs))
    polynomials = [random_scalars(backend, rng, k) for k in (n, 1, n - 1, n // 2)]
    requests = [([bases], upload(backend, p)) for p in polynomials]
    want = [combination(curve, Group.G1, logs[: len(p)], p) for p in polynomials]
    found = np.array([sums[0] for sums in backend.msm_many(requests)])
    assert words_to_points(curve, Group.G1, found) == want
    assert np.array_equal(backend.msm(bases, requests[1][1]), found[1])
    with pytest.raises(ValueError, match="bases"):
        backend.msm(bases, upload(backend, [1] * (n + 1)))


def test_columns_stop(opened: OpenBackend, scale: Scale) -> None:
    """A run that has been cancelled ends in each of the methods."""

    class Set:
        def is_set(self) -> bool:
            return self.cancelled

        cancelled = False

    event = Set()
    backend = opened(Job(threads=2, cancel=event))
    n = min(64, scale.large)
    v = upload(backend, [1] * n)
    domain = Domain(backend.curve.scalar, 3)
    formula = compile_formula([column("v") * column("v", 1)])
    event.cancelled = True
    calls: list[Callable[[], object]] = [
        lambda: backend.evaluate(formula, {"v": v}),
        lambda: backend.combine([Term(v, 3)]),
        lambda: backend.extend(v, domain, [5]),
        lambda: backend.values_at([(v, 5)]),
        lambda: backend.divide(v, 5),
        lambda: backend.running_product(v, v),
    ]
    for call in calls:
        with pytest.raises(Cancelled):
            call()
