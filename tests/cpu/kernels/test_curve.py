"""The CPU's group law and its tower over Fq2, compiled, against :mod:`gpuprover.reference`."""

from __future__ import annotations

import itertools
import random
from typing import Any

import numpy as np

from gpuprover import reference
from gpuprover.cpu.kernels import pairing
from gpuprover.cpu.kernels.curve import (
    NEGATE,
    add,
    add_affine,
    add_pairs,
    double,
    from_affine,
    normalise,
    store_xyzz,
)
from gpuprover.cpu.kernels.field import load, square, store
from gpuprover.cpu.kernels.jit import jit
from gpuprover.cpu.layout import Field
from gpuprover.curves import CurveParams, Group
from gpuprover.limbs import Words, address, field_to_words, words_to_field
from tests.support.samples import curve_point, from_words, generator, spec, square_root, to_words


def test_no_point_has_order_two(curve: CurveParams, group: Group) -> None:
    """What doublings in batches rely on."""
    E, q = spec(curve, group), curve.q
    order = (q if group is Group.G1 else q**2) - 1
    # y = 0 would need a cube root of −b.
    assert order % 3 == 0
    assert reference.power(E.field, E.field.neg(E.b), order // 3) != E.field.one


# The group law --------------------------------------------------------------------------


@jit
def _scaled(F, points, i, z):
    """An affine point in XYZZ with another representative than ZZ = 1."""
    x, y, zz, zzz = from_affine(F, load(F, points, 2 * i), load(F, points, 2 * i + 1))
    z2 = square(z)
    return (x * z2, y * z2 * z, zz * z2, zzz * z2 * z)


@jit
def _group_law(F, points, p_index, q_index, factors, n, out):
    """XYZZ out[4k …]: p + q of two representatives, p + q with q affine twice over, 2p."""
    for k in range(n):
        p = _scaled(F, points, p_index[k], load(F, factors, 0))
        q = _scaled(F, points, q_index[k], load(F, factors, 1))
        x, y = load(F, points, 2 * q_index[k]), load(F, points, 2 * q_index[k] + 1)
        affine = from_affine(F, load(F, points, 2 * p_index[k]), load(F, points, 2 * p_index[k] + 1))
        store_xyzz(F, out, 4 * k, add(F, p, q))
        store_xyzz(F, out, 4 * k + 1, add_affine(F, p, x, y))
        store_xyzz(F, out, 4 * k + 2, add_affine(F, affine, x, y))
        store_xyzz(F, out, 4 * k + 3, double(F, p))


def _special_points(curve: CurveParams, group: Group, rng: random.Random) -> list[Any]:
    """Infinity, small multiples and their negatives, points outside the subgroup, points with x = 0."""
    E = spec(curve, group)
    multiples = [E.scalar_mul(generator(curve, group), k) for k in (1, 2, 3, 5)]
    points = [*multiples, *map(E.neg, multiples), curve_point(curve, group, rng)]
    root = square_root(curve, group, E.b)
    if root is not None:  # of order 3, and told from infinity by y alone
        points += [(E.field.zero, root), (E.field.zero, E.field.neg(root))]
    return [None, *points]


def _field(curve: CurveParams, group: Group) -> Field:
    return Field(curve.base, 1 if group is Group.G1 else 2)


def test_xyzz_formulas(curve: CurveParams, group: Group, rng: random.Random) -> None:
    E, F = spec(curve, group), _field(curve, group)
    points = _special_points(curve, group, rng)
    pairs = [*itertools.product(range(len(points)), repeat=2)]
    p_index, q_index = (np.array(column, dtype=np.int64) for column in zip(*pairs, strict=True))
    factors = field_to_words(curve.base, [rng.randrange(1, curve.q) for _ in range(2 * F.degree)])
    words, count = to_words(curve, group, points), 4 * len(pairs)
    wide, out = np.zeros((count, 4 * F.words), np.uint64), np.ones((count, 2 * F.words), np.uint64)
    prefix = np.zeros((count, F.words), np.uint64)
    _group_law(F, address(words), p_index, q_index, address(factors), len(pairs), address(wide))
    normalise(F, address(wide), address(out), address(prefix), count)
    got = from_words(curve, group, out)
    for k, (i, j) in enumerate(pairs):
        p, q = points[i], points[j]
        total = E.add(p, q)
        assert got[4 * k : 4 * k + 4] == [total, total, total, E.add(p, p)], (p, q)


def test_affine_additions_in_a_batch(curve: CurveParams, group: Group, rng: random.Random) -> None:
    """All special cases share one inversion, with both signs."""
    E, F = spec(curve, group), _field(curve, group)
    points = _special_points(curve, group, rng)
    cases = [*itertools.product(range(len(points)), range(len(points)), (0, NEGATE), (0, NEGATE))]
    rng.shuffle(cases)
    n, words = len(cases), to_words(curve, group, points)
    p_index = np.array([i | sign for i, _, sign, _ in cases], dtype=np.int64)
    q_index = np.array([j | sign for _, j, _, sign in cases], dtype=np.int64)
    out, prefix = np.ones((n, 2 * F.words), np.uint64), np.zeros((n, F.words), np.uint64)
    order, kinds = np.arange(n, dtype=np.int64), np.zeros(n, np.uint8)
    source = address(words)
    add_pairs(F, source, p_index, source, q_index, address(out), order, n, address(prefix), kinds)

    def signed(point: Any, sign: int) -> Any:
        return E.neg(point) if sign else point

    expected = [E.add(signed(points[i], s), signed(points[j], t)) for i, j, s, t in cases]
    assert from_words(curve, group, out) == expected


# The tower -------------------------------------------------------------------------------


@jit
def _load12(F, a, i):
    k = 6 * i
    return (
        (load(F, a, k), load(F, a, k + 1), load(F, a, k + 2)),
        (load(F, a, k + 3), load(F, a, k + 4), load(F, a, k + 5)),
    )


@jit
def _store12(out, i, a):
    for j in range(3):
        store(out, 6 * i + j, a[0][j])
        store(out, 6 * i + 3 + j, a[1][j])


@jit
def _tower(F, elements, unitary, powers, n, out):
    """Product with the next element, square, inverse, conjugate, Frobenius; square of a unitary one."""
    for i in range(n):
        a, b = _load12(F, elements, i), _load12(F, elements, (i + 1) % n)
        _store12(out, 6 * i, pairing.mul12(a, b))
        _store12(out, 6 * i + 1, pairing.square12(a))
        _store12(out, 6 * i + 2, pairing.inverse12(a))
        _store12(out, 6 * i + 3, pairing.conjugate12(a))
        _store12(out, 6 * i + 4, pairing.frobenius12(F, a, powers))
        _store12(out, 6 * i + 5, pairing.cyclotomic_square(_load12(F, unitary, i)))


def _flat(element: Any) -> list[int]:
    return [element] if isinstance(element, int) else [x for part in element for x in _flat(part)]


def _words(curve: CurveParams, elements: list[Any]) -> Words:
    return field_to_words(curve.base, _flat(elements))


def test_tower(curve: CurveParams, rng: random.Random) -> None:
    F = reference.fq12(curve)
    q = curve.q

    def element(values: list[int]) -> Any:
        pairs = [*zip(values[::2], values[1::2], strict=True)]
        return tuple(pairs[:3]), tuple(pairs[3:])

    elements = [element([rng.randrange(q) for _ in range(12)]) for _ in range(2)]
    elements += [F.one, element([q - 1] * 12), element([0] * 6 + [1] + [0] * 5)]

    def unitary(a: Any) -> Any:
        """a^((q⁶ − 1)(q² + 1)), in the cyclotomic subgroup."""
        a = reference.power(F, a, q**6 - 1)
        return F.mul(reference.power(F, a, q**2), a)

    special = [unitary(elements[0]), unitary(elements[1]), F.one]
    special += [F.mul(special[0], special[1]), F.inverse(special[0])]
    words, unitary_words = _words(curve, elements), _words(curve, special)
    powers = _words(
        curve, [reference.power(reference.fq2(curve), curve.pairing.xi, k * (q - 1) // 6) for k in range(6)]
    )
    out = np.zeros((6 * len(elements) * 12, curve.base.limbs), np.uint64)
    field = Field(curve.base, 2)
    _tower(field, address(words), address(unitary_words), address(powers), len(elements), address(out))
    got = words_to_field(curve.base, out)
    for i, a in enumerate(elements):
        expected = [
            F.mul(a, elements[(i + 1) % len(elements)]),
            F.mul(a, a),
            F.inverse(a),
            reference.power(F, a, q**6),
            reference.power(F, a, q),
            F.mul(special[i], special[i]),
        ]
        for k, name in enumerate("product square inverse conjugate Frobenius unitary-square".split()):
            at = 12 * (6 * i + k)
            assert got[at : at + 12] == _flat(expected[k]), (name, a)
