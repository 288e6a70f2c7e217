"""The suite that every backend passes: each method of the protocol against :mod:`gpuprover.reference`."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pytest

from gpuprover import reference
from gpuprover.backend import Backend, Form
from gpuprover.curves import CurveParams, Group
from gpuprover.demand import UNLIMITED, Budget, Demand, KeyBases, KeyColumn
from gpuprover.errors import Cancelled, OutOfMemory, Timeout
from gpuprover.job import Job
from gpuprover.limbs import Words, field_to_words, ints_to_words, words_to_field, words_to_ints
from gpuprover.naive import NaiveBackend
from gpuprover.polynomial import Coset, Direction, Domain, Order
from gpuprover.systems.groth16 import prover
from tests.conftest import OpenBackend, Scale
from tests.support.samples import (
    POINT_KINDS,
    SCALAR_KINDS,
    combination,
    curve_point,
    fast_dft,
    field_edges,
    from_words,
    generator,
    has_cofactor,
    plain,
    point,
    point_words,
    random_logs,
    spec,
    square_root,
    to_words,
    unaligned,
    whole_order,
)

SIZES = [0, 1, 2, 3, 31, 32, 33, 255, 1000]


def scalar_words(backend: Backend, values: list[int]) -> Any:
    return ints_to_words(values, backend.curve.scalar.limbs)


def upload(backend: Backend, values: list[int]) -> Any:
    return backend.upload(scalar_words(backend, values))


def download(backend: Backend, v: Any) -> list[int]:
    return words_to_ints(backend.download(v))


def random_scalars(backend: Backend, rng: random.Random, n: int) -> list[int]:
    """Uniform, with an edge value among ten."""
    r = backend.curve.r
    edges = field_edges(r)
    return [rng.choice(edges) if rng.random() < 0.1 else rng.randrange(r) for _ in range(n)]


def test_a_backend_knows_what_it_serves(backend: Backend, backend_name: str, curve: CurveParams) -> None:
    assert backend.name == backend_name
    assert backend.curve is curve
    assert isinstance(backend.job, Job)


# Memory -----------------------------------------------------------------------------


@pytest.mark.both_paths
@pytest.mark.parametrize("n", SIZES)
def test_upload_and_download(backend: Backend, rng: random.Random, n: int) -> None:
    fr = backend.curve.scalar
    values = [*field_edges(fr.modulus), *(rng.randrange(fr.modulus) for _ in range(n))][:n]
    R = fr.R
    as_form = {
        Form.CANONICAL: values,
        Form.MONTGOMERY: [v * R % fr.modulus for v in values],
        Form.DOUBLE_MONTGOMERY: [v * R * R % fr.modulus for v in values],
    }
    for form, given in as_form.items():
        words = scalar_words(backend, given)
        for array in (words, unaligned(words)):
            v = backend.upload(array, form)
            for wanted, expected in as_form.items():
                got = backend.download(v, wanted)
                assert got.dtype == np.uint64
                assert got.shape == (n, fr.limbs)
                assert words_to_ints(got) == expected, (form, wanted)
        assert words_to_ints(words) == given, "the caller's array was changed"


def test_handles_do_not_share_memory(backend: Backend) -> None:
    words = scalar_words(backend, [1, 2, 3])
    for form in Form:
        v = backend.upload(words, form)
        before = backend.download(v, form)
        words[0] = 9
        taken = backend.download(v, form)
        taken[1] = 9
        assert np.array_equal(backend.download(v, form), before)
        words[0] = scalar_words(backend, [1])[0]


def test_free(backend: Backend, group: Group) -> None:
    kept, gone = upload(backend, [1, 2]), upload(backend, [3, 4])
    bases = backend.prepare_bases(group, point_words(backend.curve, group, [1, 2]))
    index = np.zeros(1, np.uint32)
    matrices = backend.prepare_matrices(1, 2, index, index, index, scalar_words(backend, [5]), Form.CANONICAL)
    backend.free()
    backend.free(gone, bases, matrices)
    assert download(backend, kept) == [1, 2]


def key_demand(curve: CurveParams, log_n: int) -> Demand:
    n = 1 << log_n
    return prover.demand(curve, n_vars=n - 3, n_public=2, domain_size=n, n_coefficients=4 * n)


@pytest.mark.both_paths
def test_plan(backend: Backend) -> None:
    small, large = (backend.plan(key_demand(backend.curve, k), UNLIMITED) for k in (10, 16))
    for plan in (small, large):
        parts = [getattr(plan, f.name) for f in fields(plan)]
        assert all(isinstance(part, int) and part >= 0 for part in parts)
        assert plan.total == sum(parts)
    # At least the key's points, and three vectors of the domain.
    curve = backend.curve
    assert large.key >= (4 * curve.g1_words + curve.g2_words) * 8 << 16
    assert large.arena >= 3 * curve.scalar.bytes << 16
    assert large.total > small.total
    same = Budget(large.total, large.total)
    assert backend.plan(key_demand(curve, 16), same).total <= large.total
    with pytest.raises(OutOfMemory):
        backend.plan(key_demand(curve, 16), Budget(1 << 20, 1 << 20))


def steps_with_a_column(values: Words, points: Words, backend: Backend) -> tuple[Words, Words]:
    """The squares of a key's column, and their sum with a key's bases."""
    column = backend.column("q", values, Form.MONTGOMERY)
    squares = backend.mul(column, column)
    bases = backend.bases("srs", points)
    ((total,),) = backend.msm_many([([bases], squares)])
    found = backend.download(squares)
    backend.free(column, squares, bases)
    return found, total


def rehearsed(demand: Demand, backend: Backend) -> None:
    n, curve = demand.columns[0].size, demand.curve
    zero = np.uint64(0)
    shapes = (n, curve.scalar.limbs), (n, curve.g1_words)
    steps_with_a_column(np.broadcast_to(zero, shapes[0]), np.broadcast_to(zero, shapes[1]), backend)


class Owner:
    """Of a key's parts."""


@pytest.mark.both_paths
def test_parts_of_a_key_are_asked_for_by_name(backend: Backend, rng: random.Random) -> None:
    """A column and bases, in several proofs of one key, and of another whose content differs."""
    curve, n = backend.curve, 5
    demand = Demand(
        protocol="test",
        curve=curve,
        witness=0,
        domains=(),
        bases=(KeyBases("srs", Group.G1, n),),
        matrices=(),
        columns=(KeyColumn("q", n),),
        together=(("srs",),),
        rehearse=rehearsed,
    )
    assert backend.plan(demand, UNLIMITED).arena >= 2 * n * curve.scalar.bytes
    keys = []
    for _ in range(2):
        numbers, logs = ([rng.randrange(curve.r) for _ in range(n)] for _ in range(2))
        points = to_words(curve, Group.G1, [point(curve, Group.G1, log) for log in logs])
        keys.append((Owner(), numbers, logs, field_to_words(curve.scalar, numbers), points))
    for owner, numbers, logs, values, points in [*keys, *keys]:
        with backend.session(demand, owner, UNLIMITED):
            found, total = steps_with_a_column(values, points, backend)
        squares = [x * x % curve.r for x in numbers]
        assert words_to_ints(found) == squares
        assert plain(curve, Group.G1, total) == combination(curve, Group.G1, logs, squares)
        assert values.tobytes() == field_to_words(curve.scalar, numbers).tobytes(), (
            "columns are not written to"
        )
    with pytest.raises(ValueError, match="no session is open"):
        backend.column("q", values, Form.MONTGOMERY)
    with backend.session(demand, owner, UNLIMITED):
        for ask in (
            lambda: backend.column("r", values, Form.MONTGOMERY),
            lambda: backend.bases("B2", points),
        ):
            with pytest.raises(ValueError, match="no part called"):
                ask()


# Vectors ----------------------------------------------------------------------------


@pytest.mark.both_paths
@pytest.mark.parametrize("n", SIZES)
def test_pointwise(backend: Backend, rng: random.Random, n: int) -> None:
    r = backend.curve.r
    a, b, c = (random_scalars(backend, rng, n) for _ in range(3))
    u, v, w = (upload(backend, x) for x in (a, b, c))
    assert download(backend, backend.add(u, v)) == [(x + y) % r for x, y in zip(a, b, strict=True)]
    assert download(backend, backend.sub(u, v)) == [(x - y) % r for x, y in zip(a, b, strict=True)]
    assert download(backend, backend.mul(u, v)) == [x * y % r for x, y in zip(a, b, strict=True)]
    assert [download(backend, x) for x in (u, v, w)] == [a, b, c], "an argument was changed"
    assert backend.multiply_subtract_in_place(u, v, w) is u
    assert download(backend, u) == [(x * y - z) % r for x, y, z in zip(a, b, c, strict=True)]
    assert [download(backend, x) for x in (v, w)] == [b, c], "an argument was changed"


@pytest.mark.both_paths
def test_pointwise_at_the_edges(backend: Backend) -> None:
    r = backend.curve.r
    edges = field_edges(r)
    a, b = [x for x in edges for _ in edges], edges * len(edges)
    u, v = upload(backend, a), upload(backend, b)
    assert download(backend, backend.add(u, v)) == [(x + y) % r for x, y in zip(a, b, strict=True)]
    assert download(backend, backend.sub(u, v)) == [(x - y) % r for x, y in zip(a, b, strict=True)]
    assert download(backend, backend.mul(u, v)) == [x * y % r for x, y in zip(a, b, strict=True)]


@pytest.mark.both_paths
def test_pointwise_with_itself(backend: Backend) -> None:
    r = backend.curve.r
    a = field_edges(r)
    u = upload(backend, a)
    assert download(backend, backend.add(u, u)) == [2 * x % r for x in a]
    assert download(backend, backend.sub(u, u)) == [0] * len(a)
    assert download(backend, backend.mul(u, u)) == [x * x % r for x in a]
    backend.multiply_subtract_in_place(u, u, u)
    assert download(backend, u) == [(x * x - x) % r for x in a]


@pytest.mark.both_paths
def test_pointwise_in_many_pieces(opened: OpenBackend, backend_name: str, rng: random.Random) -> None:
    """Long enough to be shared among threads, at a length that no block divides."""
    n = 20_011 if backend_name != "reference" else 101
    for threads in (1, 3):
        backend = opened(Job(threads=threads))
        r = backend.curve.r
        a, b = (random_scalars(backend, rng, n) for _ in range(2))
        u, v = upload(backend, a), upload(backend, b)
        assert download(backend, backend.mul(u, v)) == [x * y % r for x, y in zip(a, b, strict=True)]
        ones = backend.mul(u, backend.batch_inverse(u))
        assert download(backend, ones) == [1 if x else 0 for x in a]
        backend.scale_powers_in_place(u, 5, 3)
        factors = [5]
        for _ in range(n - 1):
            factors.append(factors[-1] * 3 % r)
        assert download(backend, u) == [x * f % r for x, f in zip(a, factors, strict=True)]


@pytest.mark.both_paths
@pytest.mark.parametrize("n", SIZES)
def test_scale_powers(backend: Backend, rng: random.Random, n: int) -> None:
    r = backend.curve.r
    a = random_scalars(backend, rng, n)
    for factor, base in ((1, 1), (0, 5), (5, 0), (r - 1, r - 1), (rng.randrange(r), rng.randrange(r))):
        v = upload(backend, a)
        assert backend.scale_powers_in_place(v, factor, base) is v
        assert download(backend, v) == [x * factor * pow(base, i, r) % r for i, x in enumerate(a)]


@pytest.mark.both_paths
@pytest.mark.parametrize("n", SIZES)
def test_batch_inverse(backend: Backend, rng: random.Random, n: int) -> None:
    r = backend.curve.r
    for a in (random_scalars(backend, rng, n), [0] * n, [0] * (n - 1) + [2] * (n > 0)):
        v = upload(backend, a)
        assert download(backend, backend.batch_inverse(v)) == [pow(x, -1, r) if x else 0 for x in a]
        assert download(backend, v) == a, "the argument was changed"


def reorder(order: Order, values: list[int], *, given: bool) -> list[int]:
    """Values in natural order as a transform of this order takes (or else returns) them."""
    reversed_side = Order.REVERSED_TO_NATURAL if given else Order.NATURAL_TO_REVERSED
    return reference.bit_reverse(values) if order is reversed_side else values


@pytest.mark.both_paths
@pytest.mark.parametrize("log_n", range(12))
def test_ntt(backend: Backend, scale: Scale, rng: random.Random, log_n: int) -> None:
    """Every direction × order × coset."""
    domain = Domain(backend.curve.scalar, min(log_n, scale.log_ntt))
    coefficients = random_scalars(backend, rng, domain.size)
    for coset, shift in ((Coset.NONE, 1), (Coset.ODD, domain.coset_generator)):
        evaluations = fast_dft(domain.field, coefficients, domain.omega, shift)
        sides = {
            Direction.FORWARD: (coefficients, evaluations),
            Direction.INVERSE: (evaluations, coefficients),
        }
        for direction, (x, y) in sides.items():
            for order in Order:
                v = upload(backend, reorder(order, x, given=True))
                assert backend.ntt(v, domain, direction, order, coset) is v
                assert download(backend, v) == reorder(order, y, given=False), (direction, order, coset)
        v = upload(backend, fast_dft(domain.field, coefficients, domain.omega))
        other = upload(backend, [0] * domain.size)
        assert backend.to_coset_in_place([v, other], domain, coset)[0] is v
        assert download(backend, v) == evaluations
        assert download(backend, other) == [0] * domain.size


@pytest.mark.both_paths
@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("log_n", [10, 12, 13, 15])
def test_to_coset_is_two_transforms(
    opened: OpenBackend, scale: Scale, rng: random.Random, log_n: int, threads: int
) -> None:
    """Against the single transforms, at sizes where the path may differ; extreme values too."""
    backend = opened(Job(threads=threads))
    domain = Domain(backend.curve.scalar, min(log_n, scale.log_ntt))
    n, r = domain.size, backend.curve.r
    vectors = {
        "random": random_scalars(backend, rng, n),
        "all r - 1": [r - 1] * n,
        "0 and r - 1": [(i % 2) * (r - 1) for i in range(n)],
        "first only": [1] + [0] * (n - 1),
        "last only": [0] * (n - 1) + [r - 1],
    }
    for name, values in vectors.items():
        (got,) = backend.to_coset_in_place([upload(backend, values)], domain, Coset.ODD)
        want = backend.ntt(upload(backend, values), domain, Direction.INVERSE)
        backend.ntt(want, domain, Direction.FORWARD, coset=Coset.ODD)
        assert np.array_equal(backend.download(got), backend.download(want)), name


@pytest.mark.both_paths
@pytest.mark.long_sums
def test_msm_again_and_again(
    opened: OpenBackend, group: Group, scale: Scale, curve: CurveParams, rng: random.Random
) -> None:
    """Threads that share memory by mistake are right most of the time."""
    backend = opened(Job(threads=4))
    n = scale.large // 7
    table = point_words(curve, group, range(-40, 41))
    for _ in range(12 if scale.large > 1000 else 1):
        logs = [rng.randrange(-40, 41) for _ in range(n)]
        scalars = SCALAR_KINDS[rng.choice(list(SCALAR_KINDS))](rng, curve.r, n)
        bases = backend.prepare_bases(group, table[np.array(logs) + 40])
        got = backend.msm(bases, scalar_words(backend, scalars))
        assert plain(curve, group, got) == combination(curve, group, logs, scalars)


@pytest.mark.both_paths
@pytest.mark.parametrize("log_n", [3, 10])
def test_ntt_of_special_vectors(backend: Backend, scale: Scale, log_n: int) -> None:
    domain = Domain(backend.curve.scalar, min(log_n, scale.log_ntt))
    n, r = domain.size, backend.curve.r
    last = [0] * (n - 1) + [1]
    cases: dict[str, tuple[list[int], list[int]]] = {
        "zero": ([0] * n, [0] * n),
        "constant": ([1] + [0] * (n - 1), [1] * n),
        "all one": ([1] * n, [n] + [0] * (n - 1)),
        "all r - 1": ([r - 1] * n, [r - n] + [0] * (n - 1)),
        "highest power": (last, [pow(domain.omega, -j, r) for j in range(n)]),
    }
    for name, (x, y) in cases.items():
        v = upload(backend, x)
        assert download(backend, backend.ntt(v, domain, Direction.FORWARD)) == y, name
        assert download(backend, backend.ntt(v, domain, Direction.INVERSE)) == x, name


@pytest.mark.both_paths
@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_large_ntt(opened: OpenBackend, scale: Scale, rng: random.Random, threads: int) -> None:
    """Evaluated at a few places, and back; other thread counts share the work in other ways."""
    backend = opened(Job(threads=threads))
    r = backend.curve.r
    domain = Domain(backend.curve.scalar, scale.log_large - threads % 2)
    x = [rng.randrange(r) for _ in range(domain.size)]
    for coset, shift in ((Coset.NONE, 1), (Coset.ODD, domain.coset_generator)):
        v = upload(backend, x)
        y = download(backend, backend.ntt(v, domain, Direction.FORWARD, coset=coset))
        for j in (0, 1, domain.size // 2 + 1, rng.randrange(domain.size)):
            at = shift * pow(domain.omega, j, r) % r
            value = 0
            for c in reversed(x):
                value = (value * at + c) % r
            assert y[j] == value
        assert download(backend, backend.ntt(v, domain, Direction.INVERSE, coset=coset)) == x
        backend.ntt(v, domain, Direction.FORWARD, Order.NATURAL_TO_REVERSED, coset)
        assert download(backend, v) == reference.bit_reverse(y)
        backend.ntt(v, domain, Direction.INVERSE, Order.REVERSED_TO_NATURAL, coset)
        assert download(backend, v) == x


@pytest.mark.both_paths
@pytest.mark.parametrize("threads", [1, 3, 64])
@pytest.mark.parametrize("log_n", [9, 12, 15])
def test_orders_of_an_ntt_agree(
    opened: OpenBackend, scale: Scale, rng: random.Random, log_n: int, threads: int
) -> None:
    """The same values whatever the order, and an inverse that takes them back; extreme values too."""
    backend = opened(Job(threads=threads))
    domain = Domain(backend.curve.scalar, min(log_n, scale.log_ntt))
    n, r = domain.size, backend.curve.r
    places = np.array(reference.bit_reverse(list(range(n))))
    vectors = (random_scalars(backend, rng, n), [r - 1] * n, [i % 2 * (r - 1) for i in range(n)])
    for values, coset in product(vectors, Coset):
        words = scalar_words(backend, values)
        y = words
        for direction in Direction:
            x, v = y, backend.upload(y)
            y = backend.download(backend.ntt(v, domain, direction, coset=coset))
            v = backend.upload(x)
            backend.ntt(v, domain, direction, Order.NATURAL_TO_REVERSED, coset)
            assert np.array_equal(backend.download(v), y[places]), (direction, coset)
            v = backend.upload(x[places])
            backend.ntt(v, domain, direction, Order.REVERSED_TO_NATURAL, coset)
            assert np.array_equal(backend.download(v), y), (direction, coset)
        assert np.array_equal(y, words)


@pytest.mark.both_paths
def test_ntts_of_two_sizes_take_turns(backend: Backend, rng: random.Random) -> None:
    """Tables are cached by domain: one must not be taken for another."""
    for log_n in (5, 2, 5, 0, 6, 2):
        domain = Domain(backend.curve.scalar, log_n)
        x = random_scalars(backend, rng, domain.size)
        v = upload(backend, x)
        expected = reference.dft(domain.field, x, domain.omega, domain.coset_generator)
        assert download(backend, backend.ntt(v, domain, Direction.FORWARD, coset=Coset.ODD)) == expected


# Sparse products ----------------------------------------------------------------------


def records(backend: Backend, entries: list[tuple[int, int, int, int]], form: Form) -> np.ndarray:
    """Entries (matrix, row, column, value) as a file holds them: packed, read-only, unaligned."""
    fr = backend.curve.scalar
    factor = {Form.CANONICAL: 1, Form.MONTGOMERY: fr.R, Form.DOUBLE_MONTGOMERY: fr.R**2}[form]
    kind = np.dtype([("m", "<u4"), ("r", "<u4"), ("c", "<u4"), ("v", "<u8", (fr.limbs,))])
    array = np.zeros(len(entries), kind)
    for name, column in zip("mrc", range(3), strict=True):
        array[name] = [entry[column] for entry in entries]
    array["v"] = ints_to_words([entry[3] * factor % fr.modulus for entry in entries], fr.limbs)
    return unaligned(array)


def products(
    count: int, rows: int, entries: list[tuple[int, int, int, int]], s: list[int], r: int
) -> list[list[int]]:
    result = [[0] * rows for _ in range(count)]
    for matrix, row, column, value in entries:
        result[matrix][row] = (result[matrix][row] + value * s[column]) % r
    return result


@pytest.mark.both_paths
@pytest.mark.parametrize("form", Form)
@pytest.mark.parametrize(
    ("count", "rows", "columns", "nnz"), [(1, 1, 1, 1), (2, 37, 50, 400), (3, 64, 5, 90)]
)
def test_spmv(
    backend: Backend, rng: random.Random, form: Form, count: int, rows: int, columns: int, nnz: int
) -> None:
    r = backend.curve.r
    values = random_scalars(backend, rng, nnz)
    # Few rows are hit often, some never; entries stand in no order and many repeat.
    entries = [
        (rng.randrange(count), rng.choice([0, rows - 1, rng.randrange(rows)]), rng.randrange(columns), v)
        for v in values
    ]
    entries += [entries[0]] * 3
    array = records(backend, entries, form)
    m = backend.prepare_matrices(count, rows, array["m"], array["r"], array["c"], array["v"], form)
    for s in (random_scalars(backend, rng, columns), [1] * columns, [r - 1] * columns, [0] * columns):
        words = scalar_words(backend, s)
        expected = products(count, rows, entries, s, r)
        for given in (words, unaligned(words)):
            assert [download(backend, v) for v in backend.spmv(m, given)] == expected


@pytest.mark.both_paths
@pytest.mark.parametrize("form", Form)
def test_spmv_of_plain_and_reversed_arrays(backend: Backend, rng: random.Random, form: Form) -> None:
    r = backend.curve.r
    entries = [(i % 2, rng.randrange(10), rng.randrange(8), rng.randrange(r)) for i in range(60)]
    s = random_scalars(backend, rng, 8)
    expected = products(2, 10, entries, s, r)
    array = records(backend, entries, form)
    plain = {name: np.ascontiguousarray(array[name]) for name in "mrcv"}
    backwards = {name: array[name][::-1] for name in "mrcv"}
    for parts in (plain, backwards):
        m = backend.prepare_matrices(2, 10, parts["m"], parts["r"], parts["c"], parts["v"], form)
        assert [download(backend, v) for v in backend.spmv(m, scalar_words(backend, s))] == expected


@pytest.mark.both_paths
@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("order", ["rows", "none", "one row last"])
def test_spmv_on_threads(
    opened: OpenBackend, scale: Scale, rng: random.Random, threads: int, order: str
) -> None:
    """Entries in the order of their rows, where threads may share them out by place, and in others."""
    backend = opened(Job(threads=threads))
    r, rows, columns = backend.curve.r, 40, 30
    n = 5000 if scale.points > 100 else 200
    drawn = [(rng.randrange(2), rng.randrange(rows), rng.randrange(columns)) for _ in range(n)]
    # One row has more entries than a thread's share, some rows have none.
    drawn += [(rng.randrange(2), 17, rng.randrange(columns)) for _ in range(n)]
    drawn = [(m, row if row % 5 else 0, c) for m, row, c in drawn]
    if order != "none":
        drawn.sort(key=lambda entry: entry[1])
    if order == "one row last":
        drawn.append((0, 3, 0))
    entries = [(*place, v) for place, v in zip(drawn, random_scalars(backend, rng, len(drawn)), strict=True)]
    array = records(backend, entries, Form.DOUBLE_MONTGOMERY)
    m = backend.prepare_matrices(2, rows, *(array[k] for k in "mrcv"), Form.DOUBLE_MONTGOMERY)
    s = [rng.choice((0, 1, r - 1, rng.randrange(r))) for _ in range(columns)]
    got = backend.spmv(m, scalar_words(backend, s))
    assert [download(backend, v) for v in got] == products(2, rows, entries, s, r)


@pytest.mark.both_paths
def test_spmv_without_entries(backend: Backend) -> None:
    array = records(backend, [], Form.DOUBLE_MONTGOMERY)
    m = backend.prepare_matrices(2, 3, array["m"], array["r"], array["c"], array["v"], Form.DOUBLE_MONTGOMERY)
    result = backend.spmv(m, scalar_words(backend, [1, 2]))
    assert [download(backend, v) for v in result] == [[0] * 3] * 2


# Multi-scalar multiplication ------------------------------------------------------------


@pytest.mark.both_paths
@pytest.mark.long_sums
@pytest.mark.long_in_integers
@pytest.mark.parametrize("kind", SCALAR_KINDS)
def test_msm_of_every_kind(
    backend: Backend, group: Group, scale: Scale, rng: random.Random, kind: str
) -> None:
    """Kinds of scalars × kinds of points: skewed, equal, opposite, infinite."""
    curve, n = backend.curve, scale.edge_points
    for name, make in POINT_KINDS.items():
        logs = make(rng, n)
        scalars = SCALAR_KINDS[kind](rng, curve.r, n)
        bases = backend.prepare_bases(group, point_words(curve, group, logs))
        got = backend.msm(bases, scalar_words(backend, scalars))
        assert plain(curve, group, got) == combination(curve, group, logs, scalars), name


@pytest.mark.both_paths
@pytest.mark.long_sums
def test_msm_sizes(backend: Backend, group: Group, scale: Scale, rng: random.Random) -> None:
    curve = backend.curve
    for n in sorted({min(n, scale.points) for n in SIZES}):
        logs, scalars = random_logs(rng, n), random_scalars(backend, rng, n)
        expected = combination(curve, group, logs, scalars)
        points, words = point_words(curve, group, logs), scalar_words(backend, scalars)
        bases = backend.prepare_bases(group, unaligned(points))
        assert plain(curve, group, backend.msm(bases, unaligned(words))) == expected, n
        v = backend.upload(words)
        assert plain(curve, group, backend.msm(bases, v)) == expected, n
        assert download(backend, v) == scalars, "the argument was changed"
        # The same bases serve other scalars.
        got = backend.msm(bases, scalar_words(backend, [1] * n))
        assert plain(curve, group, got) == combination(curve, group, logs, [1] * n)


@pytest.mark.both_paths
@pytest.mark.long_sums
def test_msm_of_one_bit_each(backend: Backend, group: Group, scale: Scale) -> None:
    """2^i·P, (2^i − 1)·P and −2^i·P in turn, alone: no window, carry or top bit is lost."""
    curve = backend.curve
    E, P = spec(curve, group), point(curve, group, 3)
    bases = backend.prepare_bases(group, point_words(curve, group, [3]))
    step = 1 if scale.points > 100 else 37
    power = P
    for i in range(curve.r.bit_length() - 1):
        cases = [(1 << i, power), ((1 << i) - 1, E.add(power, E.neg(P))), (curve.r - (1 << i), E.neg(power))]
        for k, expected in cases[i // step % 3 :: 3] if i % step == 0 else ():
            got = backend.msm(bases, scalar_words(backend, [k]))
            assert plain(curve, group, got) == expected, k
        power = E.add(power, power)


@pytest.mark.both_paths
def test_msm_result_at_infinity(backend: Backend, group: Group) -> None:
    curve, r = backend.curve, backend.curve.r
    for logs, scalars in (
        ([1, -1], [5, 5]),
        ([2, 1], [1, r - 2]),
        ([7, 7, 7], [1, 2, r - 3]),
        ([0], [r - 1]),
    ):
        bases = backend.prepare_bases(group, point_words(curve, group, logs))
        assert plain(curve, group, backend.msm(bases, scalar_words(backend, scalars))) is None


@pytest.mark.both_paths
@pytest.mark.long_sums
@pytest.mark.parametrize("budget", [None, 0, 1 << 20])
def test_msm_with_budgets(
    backend: Backend, group: Group, scale: Scale, rng: random.Random, budget: int | None
) -> None:
    curve, n = backend.curve, scale.edge_points
    logs, scalars = random_logs(rng, n), random_scalars(backend, rng, n)
    bases = backend.prepare_bases(group, point_words(curve, group, logs), budget)
    got = backend.msm(bases, scalar_words(backend, scalars))
    assert plain(curve, group, got) == combination(curve, group, logs, scalars)


@pytest.mark.both_paths
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_msm_many(
    opened: OpenBackend, scale: Scale, rng: random.Random, threads: int, curve: CurveParams
) -> None:
    backend = opened(Job(threads=threads))
    n = min(200, scale.points)
    scalars = random_scalars(backend, rng, n)
    groups = [Group.G1, Group.G2, Group.G1]
    logs = [random_logs(rng, n), random_logs(rng, n), POINT_KINDS["half at infinity"](rng, n)]
    bases = [backend.prepare_bases(g, point_words(curve, g, k)) for g, k in zip(groups, logs, strict=True)]
    expected = [combination(curve, g, k, scalars) for g, k in zip(groups, logs, strict=True)]
    words = scalar_words(backend, scalars)
    short = n // 3
    few = backend.prepare_bases(Group.G1, point_words(curve, Group.G1, logs[0][:short]))
    none = backend.prepare_bases(Group.G1, point_words(curve, Group.G1, []))
    other = combination(curve, Group.G1, logs[0][:short], scalars[-short:])
    plain_in = partial(plain, curve)
    requests = [(bases, words), ([few], backend.upload(words[-short:])), ([none], words[:0]), ([], words)]
    found, (rest,), (nothing,), no_bases = backend.msm_many(requests)
    assert list(map(plain_in, groups, found)) == expected
    assert plain_in(Group.G1, rest) == other
    assert plain_in(Group.G1, nothing) is None
    assert no_bases == []
    (found,) = backend.msm_many([(bases, backend.upload(words))])
    assert list(map(plain_in, groups, found)) == expected
    assert backend.msm_many([]) == []
    assert [plain_in(g, backend.msm(b, words)) for g, b in zip(groups, bases, strict=True)] == expected


@pytest.mark.both_paths
@pytest.mark.parametrize("kind", ["random", "zero and one", "half equal", "all equal"])
def test_msm_of_many_equal_points(
    opened: OpenBackend, group: Group, scale: Scale, curve: CurveParams, rng: random.Random, kind: str
) -> None:
    """Long buckets of P, −P and 2P: doublings and cancellations in bulk, shared among threads."""
    backend = opened(Job(threads=3))
    n = 3000 if scale.points > 100 else 4
    logs = [rng.choice((5, -5, 10)) for _ in range(n)]
    scalars = SCALAR_KINDS[kind](rng, curve.r, n)
    bases = backend.prepare_bases(group, point_words(curve, group, logs))
    got = backend.msm(bases, scalar_words(backend, scalars))
    assert plain(curve, group, got) == combination(curve, group, logs, scalars)


@pytest.mark.both_paths
@pytest.mark.long_sums
@pytest.mark.parametrize("kind", ["random", "zero and one", "half equal", "one bit set", "16 bits"])
def test_large_msm(backend: Backend, group: Group, scale: Scale, rng: random.Random, kind: str) -> None:
    """More points than one block, window or thread takes."""
    curve, n = backend.curve, scale.large
    distinct = [0, *random_logs(rng, 510), 1, -1]
    logs = (distinct * (n // len(distinct) + 1))[:n]
    points = np.resize(point_words(curve, group, distinct), (n, group.words(curve)))
    scalars = SCALAR_KINDS[kind](rng, curve.r, n)
    bases = backend.prepare_bases(group, points)
    got = backend.msm(bases, scalar_words(backend, scalars))
    assert plain(curve, group, got) == combination(curve, group, logs, scalars)


# Other sums -----------------------------------------------------------------------------


@pytest.mark.on_host
def test_linear_combination(backend: Backend, group: Group, rng: random.Random) -> None:
    curve, r = backend.curve, backend.curve.r
    logs = [1, -1, 0, *random_logs(rng, 3)]
    points = point_words(curve, group, logs)
    for scalars in (
        [0] * 6,
        [1, 1, 1, 0, 0, 0],
        [-1, 2, 3, -4, 5, -6],
        [r, r + 1, -r, 2 * r - 1, -r - 1, r * r + 7],
        [rng.randrange(-(1 << 600), 1 << 600) for _ in range(6)],
    ):
        expected = combination(curve, group, logs, scalars)
        for given in (points, unaligned(points), np.repeat(points, 2, axis=0)[::2]):
            assert plain(curve, group, backend.points.linear_combination(group, given, scalars)) == expected
    assert plain(curve, group, backend.points.linear_combination(group, points[:0], [])) is None
    assert plain(curve, group, backend.points.linear_combination(group, points[:1], [5])) == point(
        curve, group, 5
    )


@pytest.mark.on_host
def test_linear_combination_of_equal_points(backend: Backend, group: Group) -> None:
    curve = backend.curve
    for logs, scalars in (([4, 4], [3, 3]), ([4, -4], [3, 3]), ([4, 8], [2, 1]), ([4, 8], [2, -1])):
        got = backend.points.linear_combination(group, point_words(curve, group, logs), scalars)
        assert plain(curve, group, got) == combination(curve, group, logs, scalars)


@pytest.mark.both_paths
@pytest.mark.on_host
def test_fixed_base_mul(backend: Backend, group: Group, scale: Scale, rng: random.Random) -> None:
    curve, r = backend.curve, backend.curve.r
    small = [0, 1, -1, 2, -2, 3, 0, *(rng.randrange(500) * rng.choice((1, -1)) for _ in range(300))]
    for n in sorted({min(n, 2 * scale.points) for n in (0, 1, 2, 33, 300)}):
        scalars = [k % r for k in small[:n]]
        words = scalar_words(backend, scalars)
        for log in (1, 7, 0):
            (P,) = point_words(curve, group, [log])
            expected = [combination(curve, group, [log], [k]) for k in scalars]
            for given in (words, unaligned(words), backend.upload(words)):
                got = backend.fixed_base_mul(group, P, given)
                assert got.shape == (n, group.words(curve))
                assert from_words(curve, group, got) == expected


@pytest.mark.both_paths
@pytest.mark.on_host
def test_fixed_base_mul_by_full_scalars(
    backend: Backend, group: Group, scale: Scale, rng: random.Random
) -> None:
    curve = backend.curve
    scalars = [k for make in SCALAR_KINDS.values() for k in make(rng, curve.r, 2)]
    scalars = rng.sample(scalars, min(len(scalars), scale.points * 2))
    got = backend.fixed_base_mul(group, point_words(curve, group, [1])[0], scalar_words(backend, scalars))
    expected = [spec(curve, group).scalar_mul(generator(curve, group), k) for k in scalars]
    assert from_words(curve, group, got) == expected


@pytest.mark.both_paths
@pytest.mark.on_host
def test_sparse_combination(backend: Backend, group: Group, scale: Scale, rng: random.Random) -> None:
    curve, r = backend.curve, backend.curve.r
    logs = [1, 2, -1, 0, *random_logs(rng, 20)]
    any_scalar = rng.randrange(r)
    rows: list[list[tuple[int, int]]] = [
        [],
        [(0, 1)],
        [(0, 0)],
        [(3, any_scalar)],
        [(0, any_scalar), (2, any_scalar)],
        [(0, 2), (1, 1)],
        [(0, 2), (1, r - 1)],
        [(4, 5), (4, 6), (4, r - 11)],
        [(5, r - 1), (3, 7), (6, r - 2)],
        [],
    ]
    if scale.points > 100:
        for _ in range(40):
            terms = rng.choice([1, 1, 2, 3, 40])
            rows.append(
                [
                    (rng.randrange(len(logs)), rng.choice([0, 1, r - 1, rng.randrange(r)]))
                    for _ in range(terms)
                ]
            )
    rows.append([])
    terms = [term for row in rows for term in row]
    starts = np.cumsum([0, *map(len, rows)]).astype(np.int64)
    columns = np.array([column for column, _ in terms], dtype=np.uint32)
    values = scalar_words(backend, [value for _, value in terms])
    expected = [
        combination(curve, group, [logs[column] for column, _ in row], [value for _, value in row])
        for row in rows
    ]
    points = point_words(curve, group, logs)
    for given, factors in ((points, values), (unaligned(points), unaligned(values))):
        got = backend.points.sparse_combination(group, given, starts, columns, factors)
        assert got.shape == (len(rows), group.words(curve))
        assert from_words(curve, group, got) == expected


@pytest.mark.both_paths
@pytest.mark.on_host
def test_many_results(backend: Backend, group: Group, scale: Scale) -> None:
    """More products than share an inversion, a block or a thread."""
    curve, n = backend.curve, scale.large
    logs = [0, 1, -1, 2, *range(-60, 60), 5]
    expected = np.resize(point_words(curve, group, logs), (n, group.words(curve)))
    factors = np.resize(scalar_words(backend, [k % curve.r for k in logs]), (n, curve.scalar.limbs))
    G = point_words(curve, group, [1])
    assert np.array_equal(backend.fixed_base_mul(group, G[0], factors), expected)
    starts, columns = np.arange(n + 1, dtype=np.int64), np.zeros(n, np.uint32)
    assert np.array_equal(backend.points.sparse_combination(group, G, starts, columns, factors), expected)


@pytest.mark.both_paths
@pytest.mark.on_host
def test_fixed_base_mul_again(backend: Backend, group: Group, scale: Scale) -> None:
    """A table that is kept serves the same point only, and grows with the number of multiples."""
    curve = backend.curve
    n = min(400, 2 * scale.points)
    for log, count in ((1, 2), (1, n), (7, n), (7, 1), (1, 3)):
        scalars = [curve.r - 1 - k * k for k in range(count)]
        got = backend.fixed_base_mul(
            group, point_words(curve, group, [log])[0], scalar_words(backend, scalars)
        )
        assert from_words(curve, group, got) == [combination(curve, group, [log], [k]) for k in scalars]


@pytest.mark.both_paths
@pytest.mark.on_host
def test_sparse_combination_of_long_rows(backend: Backend, group: Group, scale: Scale) -> None:
    """Rows that take several batches, between short ones; many products at once."""
    curve, n = backend.curve, scale.large
    r, logs = curve.r, [3, -1, 0, *range(2, 60)]
    kinds = [1, r - 1, 0, 1, 5, r - 7, 1, r // 3, 1]
    columns = np.arange(n, dtype=np.uint32) % len(logs)
    values = [kinds[k % len(kinds)] for k in range(n)]
    starts = np.array([0, 1, 1, n // 3, n - 2, n], dtype=np.int64)
    expected = [
        combination(curve, group, [sum(logs[columns[k]] * values[k] for k in range(lo, hi)) % r], [1])
        for lo, hi in itertools.pairwise(starts.tolist())
    ]
    got = backend.points.sparse_combination(
        group, point_words(curve, group, logs), starts, columns, scalar_words(backend, values)
    )
    assert from_words(curve, group, got) == expected


@pytest.mark.on_host
def test_suffix_sums(backend: Backend) -> None:
    curve = backend.curve
    logs = [3, 0, -1, 5, 0, 7, -7]
    got = backend.points.suffix_sums(point_words(curve, Group.G1, logs))
    expected = [combination(curve, Group.G1, [sum(logs[i:])], [1]) for i in range(len(logs))]
    assert from_words(curve, Group.G1, got) == expected
    assert len(backend.points.suffix_sums(got[:0])) == 0


@pytest.mark.on_host
def test_canonical_coordinates(backend: Backend, group: Group, rng: random.Random) -> None:
    curve = backend.curve
    points = point_words(curve, group, [0, 1, -1, *random_logs(rng, 5)])
    for given in (points, unaligned(points), points[::2], points[:0]):
        got, limbs = backend.points.canonical_coordinates(given), curve.base.limbs
        assert got.shape == given.shape
        assert words_to_ints(got.reshape(-1, limbs)) == words_to_field(curve.base, given.reshape(-1, limbs))


@pytest.mark.both_paths
@pytest.mark.on_host
def test_sparse_combination_of_nothing(backend: Backend, group: Group) -> None:
    curve = backend.curve
    empty = scalar_words(backend, [])
    points = point_words(curve, group, [1])
    columns = np.zeros(0, np.uint32)
    for rows in (0, 3):
        starts = np.zeros(rows + 1, np.int64)
        got = backend.points.sparse_combination(group, points, starts, columns, empty)
        assert got.shape == (rows, group.words(curve))
        assert not got.any()


# Checks of points -------------------------------------------------------------------------


def coordinates(curve: CurveParams, group: Group) -> int:
    return group.words(curve) // curve.base.limbs


def with_raw(curve: CurveParams, row: Any, index: int, value: int) -> Any:
    """The point with one coordinate's words replaced."""
    changed, limbs = row.copy(), curve.base.limbs
    changed[index * limbs : (index + 1) * limbs] = ints_to_words([value], limbs)[0]
    return changed


def bad_points(curve: CurveParams, group: Group, rng: random.Random) -> dict[str, Any]:
    """Rows of words that no honest file holds."""
    E, F = spec(curve, group), spec(curve, group).field
    good = point_words(curve, group, [rng.randrange(1, 500)])[0]
    x, y = point(curve, group, 5)
    bad: dict[str, Any] = {
        "x and y swapped": to_words(curve, group, [(y, x)])[0],
        "y + 1": to_words(curve, group, [(x, F.add(y, F.one))])[0],
        "x = 0": to_words(curve, group, [(F.zero, F.one)])[0],
        "y = 0": to_words(curve, group, [(F.one, F.zero)])[0],
        "all words full": np.full_like(good, (1 << 64) - 1),
    }
    for i in range(coordinates(curve, group)):
        raw = words_to_ints(good.reshape(-1, curve.base.limbs))[i]
        bad[f"coordinate {i} + q"] = with_raw(curve, good, i, raw + curve.q)
        # Zero, or infinity, for those who only reduce.
        bad[f"coordinate {i} = q"] = with_raw(curve, np.zeros_like(good), i, curve.q)
    if has_cofactor(curve, group):
        outside = curve_point(curve, group, rng)
        bad["outside the subgroup"] = to_words(curve, group, [outside])[0]
        small = E.scalar_mul(outside, curve.r)
        bad["of an order that divides the cofactor"] = to_words(curve, group, [small])[0]
        bad["that plus a good point"] = to_words(curve, group, [E.add(small, (x, y))])[0]
    if group is Group.G1 and curve.cofactor % 3 == 0:
        bad["of order 3"] = to_words(curve, group, [(0, 2)])[0]
    return bad


@pytest.mark.both_paths
@pytest.mark.on_host
def test_good_points(backend: Backend, group: Group, scale: Scale, rng: random.Random) -> None:
    curve = backend.curve
    n = min(300, 2 * scale.points)
    points = point_words(curve, group, [0, *random_logs(rng, n), 1, -1, 0])
    assert backend.points.first_bad_point(group, points) == -1
    assert backend.points.first_bad_point(group, unaligned(points)) == -1
    assert backend.points.first_bad_point(group, points[:0]) == -1
    assert backend.points.first_bad_point(group, points[::2]) == -1


@pytest.mark.on_host
def test_good_point_with_a_zero_coordinate(backend: Backend) -> None:
    """Where x = 0 has a point of order r, it is neither infinity nor bad."""
    curve = backend.curve
    y = square_root(curve, Group.G1, curve.b)
    if y is None or curve.cofactor > 1:
        assert curve.name in ("bn254", "bls12-381")
        return
    assert backend.points.first_bad_point(Group.G1, to_words(curve, Group.G1, [(0, y)])) == -1


@pytest.mark.both_paths
@pytest.mark.on_host
@pytest.mark.long_in_integers
def test_bad_points(backend: Backend, group: Group, rng: random.Random) -> None:
    curve = backend.curve
    good = point_words(curve, group, [3, 0, 4])
    for name, row in bad_points(curve, group, rng).items():
        for at in (0, 1, 3):
            points = np.insert(good, at, row, axis=0)
            assert backend.points.first_bad_point(group, points) == at, name
            assert backend.points.first_bad_point(group, unaligned(points)) == at, name


@pytest.mark.both_paths
@pytest.mark.on_host
@pytest.mark.long_in_integers
def test_first_of_several_bad_points(backend: Backend, group: Group, rng: random.Random) -> None:
    """Whatever is wrong with them."""
    curve = backend.curve
    bad = [*bad_points(curve, group, rng).values()]
    for row in bad:
        points = np.concatenate([point_words(curve, group, [1, 2]), [row], rng.sample(bad, 3)])
        assert backend.points.first_bad_point(group, points) == 2


@pytest.mark.both_paths
@pytest.mark.on_host
@pytest.mark.long_in_integers
def test_bad_point_among_many(backend: Backend, group: Group, scale: Scale, rng: random.Random) -> None:
    curve = backend.curve
    n = 2500 if scale.points > 100 else 5
    good = np.tile(point_words(curve, group, [1, 2, 0, -5, 3]), (n // 5, 1))
    for row in rng.sample([*bad_points(curve, group, rng).values()], 3):
        at = sorted(rng.sample(range(n), 2))
        points = good.copy()
        points[at] = row
        assert backend.points.first_bad_point(group, points) == at[0]


# Pairings ---------------------------------------------------------------------------------


PAIRING_CASES = {
    "empty": ([], True),
    "two": ([(2, 3), (-6, 1)], True),
    "two, false": ([(2, 3), (-5, 1)], False),
    "one": ([(1, 1)], False),
    "infinity": ([(0, 5), (7, 0), (0, 0)], True),
    "with infinity": ([(0, 5), (3, 3), (-9, 1)], True),
    "with infinity, false": ([(3, 3), (-8, 1), (4, 0)], False),
    "equal and opposite": ([(5, 4), (5, 4), (5, -8)], True),
    "four, as Groth16 has": ([(11, 13), (-3, 7), (-2, 21), (-5, 16)], True),
    "four, false": ([(11, 13), (-3, 7), (-2, 21), (-5, 17)], False),
}


def prepared(backend: Backend, n: int) -> list[int]:
    """How many points of G2 may come again: nothing to the specification, which prepares none."""
    return [0] if isinstance(backend, NaiveBackend) else list(range(n + 1))


@pytest.mark.both_paths
@pytest.mark.on_host
@pytest.mark.long_in_integers
@pytest.mark.parametrize("case", PAIRING_CASES)
def test_pairing_check(backend: Backend, case: str) -> None:
    logs, expected = PAIRING_CASES[case]
    assert expected is (sum(a * b for a, b in logs) == 0)
    curve = backend.curve
    P = point_words(curve, Group.G1, [a for a, _ in logs])
    Q = point_words(curve, Group.G2, [b for _, b in logs])
    for fixed in prepared(backend, len(logs)):
        assert backend.points.pairing_check(P, Q, fixed) is expected


@pytest.mark.both_paths
@pytest.mark.on_host
@pytest.mark.long_in_integers
def test_pairing_check_of_full_scalars(backend: Backend, rng: random.Random) -> None:
    curve, r = backend.curve, backend.curve.r
    a, b = rng.randrange(r), rng.randrange(r)
    P = point_words(curve, Group.G1, [a, 1])
    assert backend.points.pairing_check(P, point_words(curve, Group.G2, [b, -a * b % r]))
    assert not backend.points.pairing_check(P, point_words(curve, Group.G2, [b, (1 - a * b) % r]))


@pytest.mark.both_paths
@pytest.mark.on_host
@pytest.mark.long_in_integers
def test_pairing_check_of_many(backend: Backend, scale: Scale, rng: random.Random) -> None:
    """More pairs than stand in memory at a time, infinity among them."""
    curve = backend.curve
    n = 200 if scale.points > 100 else 3
    left, right = random_logs(rng, n), random_logs(rng, n)
    left[n // 2] = right[n // 3] = 0
    total = sum(a * b for a, b in zip(left, right, strict=True))
    P = point_words(curve, Group.G1, [*left, 1])
    assert backend.points.pairing_check(P, point_words(curve, Group.G2, [*right, -total]), 1)
    assert not backend.points.pairing_check(P, point_words(curve, Group.G2, [*right, 1 - total]), 1)


@pytest.mark.both_paths
@pytest.mark.on_host
@pytest.mark.long_in_integers
def test_pairing_check_refuses_points_outside_the_subgroup(backend: Backend, rng: random.Random) -> None:
    """Wherever they stand, and where the other point is infinity, which would hide them."""
    curve, E = backend.curve, spec(backend.curve, Group.G2)
    outside = curve_point(curve, Group.G2, rng)
    small = E.scalar_mul(outside, curve.r)
    bad = [outside, small, E.add(small, point(curve, Group.G2, 5)), E.neg(small)]
    good = point_words(curve, Group.G2, [3, 4, 0])
    P = point_words(curve, Group.G1, [4, -3, 1, 0])
    assert backend.points.pairing_check(P, np.concatenate([good, good[:1]]))
    for Q in bad:
        words = to_words(curve, Group.G2, [Q])
        for at in range(4):
            for fixed in prepared(backend, 4)[::4]:
                points = np.insert(good, at, words[0], axis=0)
                assert not backend.points.pairing_check(np.zeros_like(P), points, fixed)
        assert not backend.points.pairing_check(P, np.concatenate([good, words]))


SMALL_PRIMES = {"bn254": 10069, "bls12-381": 13}
"""Divisors of the twists' cofactors."""


@pytest.mark.both_paths
@pytest.mark.on_host
@pytest.mark.long_in_integers
def test_points_of_small_order_are_outside(backend: Backend, rng: random.Random) -> None:
    """Their multiples meet the exceptions of the Miller loop's formulas."""
    curve = backend.curve
    E, prime = spec(curve, Group.G2), SMALL_PRIMES[curve.name]
    order = whole_order(curve, Group.G2)
    while order % prime == 0:
        order //= prime
    small = None
    while small is None:
        small = E.scalar_mul(curve_point(curve, Group.G2, rng), order)
    while (multiple := E.scalar_mul(small, prime)) is not None:
        small = multiple
    words = to_words(curve, Group.G2, [small])
    assert backend.points.first_bad_point(Group.G2, words) == 0
    assert not backend.points.pairing_check(np.zeros((1, curve.g1_words), np.uint64), words)


# Limits -------------------------------------------------------------------------------------

Operation = Callable[[Backend], object]


def long_operations(
    opened: OpenBackend, curve: CurveParams, n: int
) -> dict[str, Callable[[Backend], Operation]]:
    """Each makes its inputs with one backend, and returns what to do with another."""

    def points(group: Group, count: int = n) -> Any:
        return np.tile(point_words(curve, group, range(1, 6)), (-(-count // 5), 1))[:count]

    scalars = np.resize(ints_to_words([curve.r - 1 - k**9 for k in range(97)], curve.scalar.limbs), (n, 4))

    def ntt(b: Backend) -> Operation:
        domain = Domain(curve.scalar, n.bit_length() - 1)
        v = b.upload(scalars[: domain.size])
        return lambda b: b.ntt(v, domain, Direction.FORWARD, coset=Coset.ODD)

    def spmv(b: Backend) -> Operation:
        index = np.zeros(n, np.uint32)
        m = b.prepare_matrices(1, 1, index, index, index, scalars, Form.DOUBLE_MONTGOMERY)
        return lambda b: b.spmv(m, scalars)

    def sparse_combination(b: Backend) -> Operation:
        starts, columns = np.arange(0, n + 1, 4), np.arange(n, dtype=np.uint32)
        return lambda b: b.points.sparse_combination(
            Group.G1, points(Group.G1), starts, columns, scalars[: starts[-1]]
        )

    def msm(group: Group) -> Callable[[Backend], Operation]:
        def prepare(b: Backend) -> Operation:
            bases = b.prepare_bases(group, points(group))
            return lambda b: b.msm(bases, scalars)

        return prepare

    return {
        "msm G1": msm(Group.G1),
        "msm G2": msm(Group.G2),
        "ntt": ntt,
        "spmv": spmv,
        "fixed_base_mul": lambda b: (
            lambda b: b.fixed_base_mul(Group.G2, point_words(curve, Group.G2, [1])[0], scalars)
        ),
        "sparse_combination": sparse_combination,
        "first_bad_point": lambda b: lambda b: b.points.first_bad_point(Group.G2, points(Group.G2)),
        "batch_inverse": lambda b: lambda b: b.batch_inverse(b.upload(scalars)),
    }


LONG = [
    "msm G1",
    "msm G2",
    "ntt",
    "spmv",
    pytest.param("fixed_base_mul", marks=pytest.mark.on_host),
    pytest.param("sparse_combination", marks=pytest.mark.on_host),
    pytest.param("first_bad_point", marks=[pytest.mark.on_host, pytest.mark.long_in_integers]),
    "batch_inverse",
]


@pytest.mark.both_paths
@pytest.mark.parametrize("name", LONG)
def test_cancel(opened: OpenBackend, curve: CurveParams, scale: Scale, name: str) -> None:
    """A cancelled operation, or a later one, raises Cancelled soon after the event is set."""
    cancel = threading.Event()
    # Compiles; short vectors would not reach all kernels.
    few = scale.large if name in ("ntt", "spmv", "batch_inverse") else 4
    long_operations(opened, curve, few)[name](opened(Job()))(opened(Job(threads=2)))
    operation = long_operations(opened, curve, scale.busy)[name](opened(Job()))
    backend = opened(Job(threads=2, cancel=cancel))
    moment: list[float] = []
    spent: list[float] = []

    def set_it() -> None:
        moment.append(time.perf_counter())
        spent.append(time.process_time())
        cancel.set()

    timer = threading.Timer(0.1, set_it)
    timer.start()
    with pytest.raises(Cancelled):
        while time.perf_counter() < (moment[0] if moment else time.perf_counter()) + 5:
            operation(backend)
    # 200 ms of work is the promise, of each of two threads: in CPU time, which other programs do not add to.
    # The rest is for a machine whose cores are shared.
    assert time.process_time() - spent[0] < 2 * (0.2 + 0.5)
    timer.join()


def test_timeout(opened: OpenBackend, curve: CurveParams, scale: Scale) -> None:
    operation = long_operations(opened, curve, scale.busy)["msm G1"](opened(Job()))
    backend = opened(Job(threads=2, timeout=0.05))
    with pytest.raises(Timeout):
        for _ in range(1000):
            operation(backend)


@pytest.mark.long_in_integers
def test_several_python_threads(
    opened: OpenBackend, curve: CurveParams, scale: Scale, rng: random.Random
) -> None:
    """Four callers at once, each with its own job, or all with one backend."""
    n, rounds = (300, 2) if scale.points > 100 else (1, 1)
    domain = Domain(curve.scalar, min(8, scale.log_ntt))
    logs, scalars = random_logs(rng, n), [rng.randrange(curve.r) for _ in range(n)]
    x = [rng.randrange(curve.r) for _ in range(domain.size)]
    y = reference.dft(domain.field, x, domain.omega, domain.coset_generator)
    expected = [combination(curve, g, logs, scalars) for g in Group]
    points = {g: point_words(curve, g, logs) for g in Group}
    words = ints_to_words(scalars, curve.scalar.limbs)
    start = threading.Barrier(4)

    def work(backend: Backend) -> None:
        start.wait()
        for _ in range(rounds):
            bases = [backend.prepare_bases(g, points[g]) for g in Group]
            (found,) = backend.msm_many([(bases, words)])
            assert [plain(curve, g, total) for g, total in zip(Group, found, strict=True)] == expected
            v = upload(backend, x)
            assert download(backend, backend.ntt(v, domain, Direction.FORWARD, coset=Coset.ODD)) == y
            assert backend.points.first_bad_point(Group.G1, points[Group.G1][:3]) == -1
        assert backend.points.pairing_check(
            point_words(curve, Group.G1, [1, 0]), point_words(curve, Group.G2, [0, 1])
        )

    shared = opened(Job(threads=2))
    for backends in ([opened(Job(threads=2)) for _ in range(4)], [shared] * 4):
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, backends))
