"""What set-ups of PLONK and FFLONK share: the permutation, powers of τ, what is refused."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from gpuprover import reference
from gpuprover.backend import Backend
from gpuprover.circuits import chain_circuit
from gpuprover.curves import BLS12_381, BN254, Group
from gpuprover.devices import open_backend
from gpuprover.errors import InvalidInput, MalformedFile, UnsupportedFile
from gpuprover.formats import ptau as pt
from gpuprover.formats.ptau import read_ptau
from gpuprover.job import Job
from gpuprover.limbs import generator, ints_to_words, words_to_field
from gpuprover.plonkish import key_writer, setup
from gpuprover.plonkish.setup import Ceremony, LocalSecret, domain_for, permutation
from gpuprover.polynomial import Domain
from tests.support.containers import edit, make_ptau, put, reordered
from tests.support.plonk_reference import plain_permutation
from tests.support.samples import curve_point, has_cofactor, to_words

ONLY_CPU = pytest.mark.parametrize("backend_name", ["cpu"])


@pytest.mark.parametrize("reserved", [0, 2])
def test_permutation(rng: random.Random, reserved: int) -> None:
    for n in (8, 32):
        for used in (0, 1, n // 2, n - reserved):
            signals = rng.choice((1, 3, 40))
            maps = [[rng.randrange(signals) for _ in range(used)] for _ in range(3)]
            found = permutation([np.array(m, dtype=np.uint32) for m in maps], n, reserved)
            expected = plain_permutation(maps, n, reserved)
            assert found.tolist() == [[p % 3 * n + p // 3 for p in column] for column in expected]


def test_permutation_by_hand() -> None:
    """Signal 7 stands at a0, b0 and c1; signal 5 at b1; the rest is signal 0."""
    maps = [np.array(m, dtype=np.uint32) for m in ([7, 0], [7, 5], [0, 7])]
    found = permutation(maps, 4, 0).tolist()
    a, b, c = 0, 4, 8
    assert found[0][0] == c + 1  # the first place leads to the last one
    assert found[1][0] == a + 0
    assert found[2][1] == b + 0
    assert found[1][1] == b + 1
    assert found[2][0] == c + 3
    assert found[0][1:] == [c + 0, a + 1, c + 2]
    assert found[2][2:] == [b + 2, b + 3]


@ONLY_CPU
def test_columns_of_the_permutation(backend: Backend, rng: random.Random) -> None:
    """Position (row, column) stands as ω^row times 1, 2 or 3."""
    domain = Domain(backend.curve.scalar, 4)
    maps = [[rng.randrange(9) for _ in range(13)] for _ in range(3)]
    arrays = [np.array(m, dtype=np.uint32) for m in maps]
    columns = key_writer.sigma_columns(backend, domain, arrays, 2)
    for column, leads_to in zip(columns, plain_permutation(maps, 16, 2), strict=True):
        expected = [(1 + p % 3) * pow(domain.omega, p // 3, backend.curve.r) for p in leads_to]
        assert words_to_field(backend.curve.scalar, column) == [x % backend.curve.r for x in expected]


@ONLY_CPU
@pytest.mark.parametrize("block", [1, 3, 1 << 14])
def test_values_on_the_larger_subgroup(
    backend: Backend, rng: random.Random, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_writer, "_BLOCK", block)
    field, domain = backend.curve.scalar, Domain(backend.curve.scalar, 3)
    coefficients = [rng.randrange(backend.curve.r) for _ in range(8)]
    root = domain.root_of_unity(5)
    expected = reference.dft(field, [*coefficients, *[0] * 24], root)
    v = backend.upload(ints_to_words(coefficients, field.limbs))
    values = ints_to_words([field.to_montgomery(x) for x in expected[::4]], field.limbs)
    found = np.concatenate(list(key_writer.evaluations(backend, domain, v, values)))
    assert words_to_field(field, found) == expected


@ONLY_CPU
def test_lagrange_polynomials(backend: Backend) -> None:
    field, domain = backend.curve.scalar, Domain(backend.curve.scalar, 3)
    root = domain.root_of_unity(5)
    for i, pieces in enumerate(key_writer.lagrange_polynomials(backend, domain, 8)):
        whole = words_to_field(field, np.concatenate(pieces))
        coefficients, values = whole[:8], whole[8:]
        assert reference.dft(field, coefficients, domain.omega) == [int(j == i) for j in range(8)]
        assert reference.dft(field, [*coefficients, *[0] * 24], root) == values


def test_domains() -> None:
    circuit = chain_circuit(2, BN254).r1cs
    sizes = [(0, 0, 8), (8, 0, 8), (9, 0, 16), (6, 2, 8), (7, 2, 16), (1 << 26, 0, 1 << 26)]
    for count, reserved, size in sizes:
        assert domain_for(circuit, count, reserved).size == size
    with pytest.raises(
        UnsupportedFile, match=r"section 2 .*67108864 gates need a domain of 2\^27.*at most 2\^26"
    ):
        domain_for(circuit, 1 << 26, 2)


# Powers of τ --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Powers of tau for 2^4 rows, τ = 1111."""
    folder, found = tmp_path_factory.mktemp("ptau"), {}
    for curve in (BN254, BLS12_381):
        found[curve.name] = folder / f"{curve.name}.ptau"
        made = make_ptau(curve, 4, 1111, 2222, 3333, open_backend("cpu", curve, Job(threads=1)))
        found[curve.name].write_bytes(made)
    return found


def altered(path: Path, section: int, offset: int, value: bytes, to: Path) -> Path:
    to.write_bytes(edit(path.read_bytes(), section, put(offset, value)))
    return to


@ONLY_CPU
def test_ceremony_and_secret_agree(
    backend: Backend, files: dict[str, Path], rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    curve = backend.curve
    r1cs = chain_circuit(3, curve).r1cs
    ceremony = Ceremony(r1cs, read_ptau(files[curve.name]), 4, 22, backend)
    monkeypatch.setattr(setup.secrets, "randbelow", lambda bound: 1110)
    monkeypatch.setattr(setup, "_BLOCK", 5)
    secret = LocalSecret(22, backend)
    assert np.array_equal(ceremony.tau_g2, secret.tau_g2)
    assert np.array_equal(*(np.concatenate(list(powers.blocks())) for powers in (ceremony, secret)))
    coefficients = [rng.randrange(curve.r) for _ in range(16)]
    v = backend.upload(ints_to_words(coefficients, curve.scalar.limbs))
    for first in (0, 6):
        value = sum(c * pow(1111, i + first, curve.r) for i, c in enumerate(coefficients)) % curve.r
        g = generator(curve, Group.G1)[None]
        expected = backend.points.linear_combination(Group.G1, g, [value])
        assert np.array_equal(ceremony.commit(v, first), expected)
        assert np.array_equal(secret.commit(v, first), expected)
    assert "names no contribution" in ceremony.warnings[0]
    assert "comes from a local secret" in secret.warnings[0]


@ONLY_CPU
def test_ceremonies_that_do_not_serve(backend: Backend, files: dict[str, Path], tmp_path: Path) -> None:
    curve = backend.curve
    r1cs, ptau = chain_circuit(3, curve).r1cs, read_ptau(files[curve.name])
    with pytest.raises(InvalidInput, match=r"power 4 is too small for .*, which needs power >= 5"):
        Ceremony(r1cs, ptau, 5, 38, backend)
    other = next(path for name, path in files.items() if name != curve.name)
    with pytest.raises(InvalidInput, match=f"powers of tau over .*, expected {curve.name}"):
        Ceremony(r1cs, read_ptau(other), 3, 14, backend)
    bare = tmp_path / "bare.ptau"
    bare.write_bytes(reordered(files[curve.name].read_bytes(), lambda s: [x for x in s if x[0] < 12]))
    with pytest.raises(InvalidInput, match="not prepared for phase 2"):
        Ceremony(r1cs, read_ptau(bare), 3, 14, backend)


@ONLY_CPU
def test_points_of_a_ceremony_that_are_wrong(
    backend: Backend, files: dict[str, Path], tmp_path: Path, rng: random.Random
) -> None:
    """Each by itself: off the curve, outside the subgroup, another point, another generator, another τ."""
    curve, path, to = backend.curve, files[backend.curve.name], tmp_path / "bad.ptau"
    r1cs, size = chain_circuit(3, curve).r1cs, 8 * curve.g1_words
    points = read_ptau(path).points(pt.TAU_G1)
    g2 = 8 * curve.g2_words
    cases = [
        (pt.TAU_G1, 13 * size, b"\1", "section 2 .*point 13 is off the curve"),
        (pt.TAU_G1, 7 * size, points[8].tobytes(), "section 2 .*not the powers of one tau"),
        (pt.TAU_G1, 0, points[1].tobytes(), "section 2 .*point 0 is not the generator"),
        (pt.TAU_G1, size, bytes(size), "section 2 .*not the powers of one tau"),
        (pt.TAU_G2, g2, b"\1", "section 3 .*tau is off the curve"),
        (pt.TAU_G2, g2, bytes(g2), "section 3 .*tau is 0"),
        (pt.TAU_G2, g2, generator(curve, Group.G2).tobytes(), "section 2 .*not the powers of one tau"),
    ]
    if has_cofactor(curve, Group.G1):
        outside = to_words(curve, Group.G1, [curve_point(curve, Group.G1, rng)])
        cases.append((pt.TAU_G1, 5 * size, outside.tobytes(), "section 2 .*point 5 is off the curve"))
    for section, offset, value, message in cases:
        bad = altered(path, section, offset, value, to)
        with pytest.raises(MalformedFile, match=message):
            Ceremony(r1cs, read_ptau(bad), 3, 14, backend)
    # Points that the circuit does not use are not looked at.
    Ceremony(r1cs, read_ptau(altered(path, pt.TAU_G1, 14 * size, b"\1", to)), 3, 14, backend)


@ONLY_CPU
def test_known_secrets(backend: Backend, files: dict[str, Path], tmp_path: Path) -> None:
    curve, r1cs, path = backend.curve, chain_circuit(3, backend.curve).r1cs, tmp_path / "known.ptau"
    for tau in (1, curve.r - 1, curve.scalar.root_of_unity(3)):
        powers = ints_to_words([pow(tau, i, curve.r) for i in range(14)], curve.scalar.limbs)
        g1, g2 = (generator(curve, group) for group in Group)
        points = backend.fixed_base_mul(Group.G1, g1, powers)
        tau_g2 = backend.points.linear_combination(Group.G2, g2[None], [tau])
        data = edit(files[curve.name].read_bytes(), pt.TAU_G1, put(0, points.tobytes()))
        path.write_bytes(edit(data, pt.TAU_G2, put(g2.nbytes, tau_g2.tobytes())))
        assert "anyone can forge proofs" in Ceremony(r1cs, read_ptau(path), 3, 14, backend).warnings[0]
