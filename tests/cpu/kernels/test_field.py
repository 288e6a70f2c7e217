"""The CPU's field elements, compiled, against :mod:`gpuprover.reference`."""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuprover import reference
from gpuprover.cpu.kernels.field import inverse, is_canonical, load, negate_if, one, square, store, zero
from gpuprover.cpu.kernels.jit import jit
from gpuprover.cpu.layout import Field
from gpuprover.curves import CURVES
from gpuprover.limbs import Words, address, field_to_words, ints_to_words, words_to_field, words_to_ints
from tests.support.samples import field_edges

FIELDS = {
    f"{params.name}, degree {degree}": Field(params, degree)
    for c in CURVES
    for params, degree in ((c.base, 1), (c.scalar, 1), (c.base, 2))
}
RESULTS = ["add", "sub", "mul", "neg", "square", "inverse", "negate_if", "zero", "one"]


@jit
def _operations(F, a, b, flags, out, equal, n):
    for i in range(n):
        x, y = load(F, a, i), load(F, b, i)
        store(out, 9 * i, x + y)
        store(out, 9 * i + 1, x - y)
        store(out, 9 * i + 2, x * y)
        store(out, 9 * i + 3, -x)
        store(out, 9 * i + 4, square(x))
        store(out, 9 * i + 5, inverse(x))
        store(out, 9 * i + 6, negate_if(x, flags[i]))
        store(out, 9 * i + 7, zero(F))
        store(out, 9 * i + 8, one(F))
        equal[i] = (1 if x == y else 0) + (2 if x != y else 0)


def test_a_field_is_taken_for_nothing_less_than_it_is() -> None:
    """A field of lanes before the lanes' kernels are imported: no scalar code is compiled for it."""
    program = """
import sys
from numba import typeof
from gpuprover.cpu.kernels.field import FieldType
from gpuprover.cpu.layout import Field, LaneField
from gpuprover.curves import BN254
early = LaneField(BN254.scalar)
assert "gpuprover.cpu.kernels.lanes" not in sys.modules
for ask in (typeof, lambda field: field._numba_type_):
    assert type(ask(Field(BN254.scalar))) is FieldType
    try:
        print(ask(early))
    except TypeError as error:
        assert str(error) == "LaneField[bn254.fr, 1]: the kernels for it are not imported", error
from gpuprover.cpu.kernels.lanes import LaneFieldType
assert type(typeof(early)) is type(typeof(LaneField(BN254.scalar))) is LaneFieldType
assert type(typeof(Field(BN254.scalar))) is FieldType
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


@jit
def _canonical(F, a, out, n):
    for i in range(n):
        out[i] = is_canonical(load(F, a, i))


def specification(F: Field) -> Any:
    prime = reference.PrimeField(F.params.modulus)
    return prime if F.degree == 1 else reference.ComplexField(prime)


def flatten(F: Field, elements: list[Any]) -> list[int]:
    return elements if F.degree == 1 else [c for e in elements for c in e]


def to_words(F: Field, elements: list[Any]) -> Words:
    return field_to_words(F.params, flatten(F, elements)).reshape(-1, F.words)


def check(F: Field, pairs: list[tuple[Any, Any]]) -> None:
    """All operations on all pairs, aligned and at an odd address."""
    n, E = len(pairs), specification(F)
    a, b = (to_words(F, [pair[i] for pair in pairs]) for i in (0, 1))
    flags = np.arange(n, dtype=np.uint8) % 2
    equal = np.zeros(n, np.uint8)
    expected: list[Any] = []
    for i, (x, y) in enumerate(pairs):
        expected += [E.add(x, y), E.sub(x, y), E.mul(x, y), E.neg(x), E.mul(x, x), E.inverse(x)]
        expected += [E.neg(x) if i % 2 else x, E.zero, E.one]
    for shift in (0, 1):
        room = [np.zeros(w.nbytes + 1, np.uint8) for w in (a, b)]
        for bytes_, words in zip(room, (a, b), strict=True):
            bytes_[shift : shift + words.nbytes] = words.view(np.uint8).reshape(-1)
        out = np.zeros((9 * n, F.words), np.uint64)
        _operations(F, address(room[0]) + shift, address(room[1]) + shift, flags, address(out), equal, n)
        got = words_to_field(F.params, out.reshape(-1, F.params.limbs))
        for i, (x, y) in enumerate(pairs):
            for k, name in enumerate(RESULTS):
                at = (9 * i + k) * F.degree
                result = got[at] if F.degree == 1 else (got[at], got[at + 1])
                assert result == expected[9 * i + k], (name, x, y)
        raw = words_to_ints(out.reshape(-1, F.params.limbs))
        assert max(raw, default=0) < F.params.modulus, "a result is not canonical"
        assert equal.tolist() == [1 if x == y else 2 for x, y in pairs]


@pytest.mark.parametrize("name", FIELDS)
def test_edge_values(name: str) -> None:
    F = FIELDS[name]
    # What stands in words is x·R: edge values of both forms.
    values = field_edges(F.params.modulus)
    values += [F.params.from_montgomery(v) for v in values]
    elements = values if F.degree == 1 else [*itertools.product(values[:14:2], values[14::3])]
    check(F, [*itertools.product(elements, elements)])


@pytest.mark.parametrize("name", FIELDS)
@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_any_values(name: str, data: st.DataObject) -> None:
    F = FIELDS[name]
    p = F.params.modulus
    word = st.sampled_from([0, 1, (1 << 64) - 1, 1 << 63]) | st.integers(0, (1 << 64) - 1)
    integer = st.lists(word, min_size=F.params.limbs, max_size=F.params.limbs).map(
        lambda words: sum(w << 64 * i for i, w in enumerate(words)) % p
    )
    value = integer | st.sampled_from(field_edges(p))
    element = value if F.degree == 1 else st.tuples(value, value)
    check(F, data.draw(st.lists(st.tuples(element, element), max_size=8)))


@jit
def _inverses(F, a, out, n):
    for i in range(n):
        store(out, i, inverse(load(F, a, i)))


@pytest.mark.parametrize("name", [name for name in FIELDS if FIELDS[name].degree == 1])
def test_inverses(name: str, rng: random.Random) -> None:
    """Words whose leading or lowest bits agree with the modulus' longest, and those of any length."""
    F = FIELDS[name]
    p = F.params.modulus
    words = [
        *field_edges(p),
        *(1 << k for k in range(p.bit_length())),
        *(p >> k for k in range(p.bit_length())),
    ]
    words += [p - (1 << k) for k in range(p.bit_length())]
    words += [k * p // n + e for n in range(2, 9) for k in range(1, n) for e in (-1, 0, 1)]
    words += [p ^ 1 << k for k in range(1, p.bit_length() - 1)]
    words += [rng.getrandbits(rng.randrange(1, p.bit_length() + 1)) for _ in range(500)]
    words = [w % p for w in words]
    a = ints_to_words(words, F.params.limbs)
    out = np.empty_like(a)
    _inverses(F, address(a), address(out), len(a))
    R2 = F.params.R**2
    expected = [R2 * pow(w, -1, p) % p if w else 0 for w in words]
    assert words_to_ints(out) == expected


@pytest.mark.parametrize("name", FIELDS)
def test_is_canonical(name: str) -> None:
    F = FIELDS[name]
    p, top = F.params.modulus, (1 << 64 * F.params.limbs) - 1
    values = {0: True, 1: True, p - 1: True, p: False, p + 1: False, top: False, p ^ 1 << 64: p ^ 1 << 64 < p}
    rows = [*itertools.product(values, repeat=F.degree)]
    words = ints_to_words([c for row in rows for c in row], F.params.limbs)
    out = np.zeros(len(rows), np.bool_)
    _canonical(F, address(words), out, len(rows))
    assert out.tolist() == [all(values[c] for c in row) for row in rows]
