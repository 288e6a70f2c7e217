"""Commitments by Lagrange points, beside those by coefficients."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from gpuprover.backend import Backend, Form
from gpuprover.circuits import chain_circuit
from gpuprover.curves import CurveParams, Group
from gpuprover.errors import MalformedFile
from gpuprover.formats import ptau as pt
from gpuprover.formats.ptau import read_ptau
from gpuprover.limbs import Words, field_to_words, words_to_field
from gpuprover.plonkish import column_commitments
from gpuprover.plonkish.column_commitments import ColumnCommitments
from gpuprover.plonkish.setup import Ceremony
from gpuprover.polynomial import Direction, Domain
from gpuprover.systems.plonk.setup import setup
from tests.support.containers import edit, make_ptau, put
from tests.support.samples import curve_point, to_words

LOG_N = 5
N = 1 << LOG_N
ONLY_CPU = pytest.mark.parametrize("backend_name", ["cpu"])


@pytest.fixture
def ptau(backend: Backend, tmp_path: Path) -> Path:
    path = tmp_path / "p.ptau"
    path.write_bytes(make_ptau(backend.curve, LOG_N, 1111, 2222, 3333, backend))
    return path


def ceremony(path: Path, backend: Backend) -> Ceremony:
    return Ceremony(chain_circuit(3, backend.curve).r1cs, read_ptau(path), LOG_N, N + 6, backend)


def columns(curve: CurveParams, rng: random.Random) -> dict[str, list[int]]:
    """Columns for every way to a commitment."""
    r, omega = curve.r, curve.scalar.root_of_unity(LOG_N)
    x = [pow(omega, i, r) for i in range(N)]
    return {
        "zeros": [0] * N,
        "ones": [1] * N,
        "a value and zeros": [0] * (N - 1) + [r - 5],
        "two values": [rng.choice((r - 1, 7)) for _ in range(N)],
        "random": [rng.randrange(r) for _ in range(N)],
        "X": x,
        "often 2·X": [2 * v % r if i % 3 else rng.randrange(r) for i, v in enumerate(x)],
    }


@ONLY_CPU
def test_commitments_are_those_of_coefficients(backend: Backend, ptau: Path, rng: random.Random) -> None:
    powers, domain = ceremony(ptau, backend), Domain(backend.curve.scalar, LOG_N)
    made, expected = ColumnCommitments(powers, domain, backend), {}
    for name, column in columns(backend.curve, rng).items():
        values = field_to_words(backend.curve.scalar, column)
        v = backend.ntt(backend.upload(values, Form.MONTGOMERY), domain, Direction.INVERSE)
        made.add(name, v, values)
        expected[name] = powers.commit(v)
    found = made.finish()
    assert [*found] == [*expected]
    for name, commitment in found.items():
        assert np.array_equal(commitment, expected[name]), name


def test_values_of_one_first_word_are_told_apart() -> None:
    """Their rows are not taken for rows of one value."""
    values = np.array([[5, 1, 0, 0], [5, 2, 0, 0], [5, 1, 0, 0]], dtype=np.uint64)
    assert column_commitments._distinct(values) is None
    assert column_commitments._distinct(values[::2]) is not None
    assert column_commitments._most_common(values).tolist() in ([5, 1, 0, 0], [5, 2, 0, 0])


@ONLY_CPU
def test_values_of_one_first_word_are_committed_to(
    backend: Backend, ptau: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    powers, field = ceremony(ptau, backend), backend.curve.scalar
    domain = Domain(field, LOG_N)
    values = np.zeros((N, field.limbs), dtype=np.uint64)
    values[:, 0], values[::2, 1] = 5, 1
    v = backend.ntt(backend.upload(values, Form.MONTGOMERY), domain, Direction.INVERSE)
    made = ColumnCommitments(powers, domain, backend)
    made.add("column", v, values)
    assert np.array_equal(made.finish()["column"], powers.commit(v))
    assert words_to_field(field, values)[0] != words_to_field(field, values)[1]


@ONLY_CPU
def test_wrong_lagrange_points_are_refused(
    backend: Backend, ptau: Path, rng: random.Random, tmp_path: Path
) -> None:
    """Whether they are other points, off the curve, or out of range; and no key is left behind."""
    curve, data = backend.curve, ptau.read_bytes()
    size = 8 * curve.g1_words
    outside = to_words(curve, Group.G1, [curve_point(curve, Group.G1, rng)])
    circuit = chain_circuit(N - 3, curve).r1cs

    def refused(at: int, value: bytes) -> None:
        ptau.write_bytes(edit(data, pt.LAGRANGE_TAU_G1, put((N - 1 + at) * size, value)))
        with pytest.raises(MalformedFile, match=r"section 12 \(Lagrange tau in G1\): not the Lagrange"):
            setup(circuit, ptau, tmp_path / "k.zkey", backend)

    points: Words = read_ptau(data).lagrange(pt.LAGRANGE_TAU_G1, LOG_N)
    refused(3, points[4].tobytes())
    refused(3, b"\1\2\3")
    refused(3, outside.tobytes())
    refused(0, b"\xff" * size)
    assert [path.name for path in tmp_path.iterdir()] == ["p.ptau"]
