"""Parameters: published files, smaller ones out of larger, and ours for tests."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gpuprover import devices
from gpuprover.curves import BLS12_381, Group
from gpuprover.errors import InsecureKeyWarning, InvalidInput, MalformedFile, ProverError
from gpuprover.job import Job
from gpuprover.limbs import generator
from gpuprover.midnight import srs as module
from gpuprover.midnight.constraint_system import domain
from gpuprover.midnight.srs import (
    S_G2,
    check_srs,
    downsize,
    file_bytes,
    file_name,
    find_srs,
    g2_from_bytes,
    g2_to_bytes,
    insecure_srs,
    lagrange_points,
    missing_message,
    parse_srs,
    published_hashes,
    read_srs,
    smaller,
    srs_bytes,
    srs_folder,
    write_srs,
)
from tests.support.midnight import SMALL, data_folder

FIVE = (SMALL / file_name(5)).read_bytes()


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("k", [5, 6, 9])
def test_published_files(k: int) -> None:
    path = SMALL / file_name(k)
    assert check_srs(path) == k
    srs = read_srs(path)
    assert (srs.k, srs.path, srs.published) == (k, str(path), True)
    assert srs.powers.shape == srs.lagrange.shape == (1 << k, 12)
    assert np.array_equal(srs.s_g2, S_G2)
    assert srs_bytes(srs) == path.read_bytes()
    assert len(srs_bytes(srs)) == file_bytes(k)


def test_published_hashes() -> None:
    found = published_hashes()
    assert list(found) == [file_name(k) for k in range(26)]
    stated = [line.split() for line in (SMALL / "srs-sha256.txt").read_text().splitlines()]
    assert found == {name: value for value, name in stated}


def test_parameters_belong_together() -> None:
    """e(s·G1, G2) = e(G1, s·G2), and the sum of the Lagrange polynomials is 1."""
    srs = read_srs(SMALL / file_name(5))
    math = devices.open_backend("cpu", BLS12_381, Job()).points
    minus = math.linear_combination(Group.G1, srs.powers[:1], [-1])
    assert math.pairing_check(np.stack([srs.powers[1], minus]), np.stack([srs.g2, srs.s_g2]))
    assert np.array_equal(math.linear_combination(Group.G1, srs.lagrange, [1] * 32), srs.powers[0])
    omega = domain(5).omega
    weights = [pow(omega, i, BLS12_381.r) for i in range(32)]
    assert np.array_equal(math.linear_combination(Group.G1, srs.lagrange, weights), srs.powers[1])


def test_smaller_parameters_are_the_published_ones(tmp_path: Path) -> None:
    larger = read_srs(SMALL / file_name(6))
    for k in range(6):
        srs = smaller(larger, k)
        assert digest(srs_bytes(srs)) == published_hashes()[file_name(k)]
        assert srs.published
    target = tmp_path / "small"
    downsize(SMALL / file_name(6), 4, target)
    assert check_srs(target) == 4
    for k in (6, 7, -1):
        with pytest.raises(InvalidInput, match=f"expected k from 0 to 5, found {k}"):
            smaller(larger, k)


@pytest.mark.slow
def test_all_smaller_parameters_are_the_published_ones() -> None:
    larger = read_srs(data_folder() / file_name(14))
    for k in range(14):
        assert digest(srs_bytes(smaller(larger, k))) == published_hashes()[file_name(k)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d[:3], "k: expected 4 bytes, found 3"),
        (lambda d: b"\x1a" + d[1:], "k: expected at most 25, found 26, at byte 0"),
        (lambda d: d[:-1], "size: expected 6532 bytes for k = 5, found 6531"),
        (lambda d: d + b"\0", "size: expected 6532 bytes for k = 5, found 6533"),
        (lambda d: d[:4] + d[100:196] + d[100:], "powers: point 0 is not the generator"),
        (
            lambda d: d[: 4 + 96 * 7] + bytes([d[4 + 96 * 7] | 0x80]) + d[5 + 96 * 7 :],
            "powers: point 7: flags",
        ),
        (
            lambda d: d[: 4 + 96 * 32 + 95] + b"\1" + d[4 + 96 * 33 :],
            "Lagrange points: point 0: not on the curve",
        ),
        (lambda d: d[:-384] + d[-192:] * 2, "generator of G2: another point"),
        (lambda d: d[:-1] + b"\1", "s·G2: not on the twist of bls12-381"),
        (lambda d: d[:-48] + b"\xff" * 48, "s·G2: a coordinate is not below"),
        (lambda d: d[:-192] + bytes(192), "s·G2: the point at infinity"),
    ],
)
def test_damaged_parameters(change: Callable[[bytes], bytes], message: str, tmp_path: Path) -> None:
    path = tmp_path / file_name(5)
    path.write_bytes(change(FIVE))
    with pytest.raises(MalformedFile) as caught:
        read_srs(path)
    assert caught.value.message.startswith(f"{path}: {message}"), caught.value.message
    assert caught.value.role == "parameters"
    with pytest.raises(MalformedFile) as caught:
        check_srs(path)
    if len(change(FIVE)) == len(FIVE):
        assert (
            f"SHA-256: expected {published_hashes()[file_name(5)]}" in caught.value.message or "k:" in message
        )


def test_points_of_g2() -> None:
    g2 = generator(BLS12_381, Group.G2)
    assert np.array_equal(g2_from_bytes(g2_to_bytes(g2)), g2)
    assert g2_to_bytes(S_G2) == FIVE[-192:]
    assert not S_G2.flags.writeable
    with pytest.raises(ValueError, match="expected 192 bytes, found 3"):
        g2_from_bytes(b"abc")


def test_where_parameters_are_looked_for(tmp_path: Path) -> None:
    everything = {"MIDNIGHT_PP": "/a", "XDG_CACHE_HOME": "/b", "HOME": "/c"}
    assert srs_folder(tmp_path, everything) == tmp_path
    assert srs_folder(None, everything) == Path("/a")
    assert srs_folder(None, everything | {"MIDNIGHT_PP": ""}) == Path("/b/midnight/zk-params")
    assert srs_folder(None, {"HOME": "/c"}) == Path("/c/.cache/midnight/zk-params")


def test_parameters_are_found(tmp_path: Path) -> None:
    (tmp_path / file_name(6)).write_bytes((SMALL / file_name(6)).read_bytes())
    (tmp_path / file_name(9)).write_bytes((SMALL / file_name(9)).read_bytes())
    srs = find_srs(6, tmp_path)
    assert (srs.k, srs.path) == (6, str(tmp_path / file_name(6)))
    made = find_srs(5, None, environment={"MIDNIGHT_PP": str(tmp_path)})
    assert srs_bytes(made) == FIVE
    assert made.path == str(tmp_path / file_name(6))
    # Made once for a file.
    assert find_srs(5, tmp_path) is made


def test_missing_parameters_are_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput) as caught:
        find_srs(7, tmp_path)
    assert caught.value.message == f"{tmp_path}: {missing_message(7)}"
    assert caught.value.role == "parameters"
    assert missing_message(7) == (
        "no bls_midnight_2p7 (SHA-256 e82ae890c080188355f37feaffe91372584cd810615082d9143d4dec0453fd9d, "
        "24964 bytes), and no larger parameters"
    )
    assert missing_message(26) == "no bls_midnight_2p26: there are parameters for k up to 25"
    (tmp_path / file_name(7)).write_bytes(FIVE)
    with pytest.raises(MalformedFile, match="k: expected 7 by the file's name, found 5"):
        find_srs(7, tmp_path)
    (tmp_path / file_name(7)).unlink()
    (tmp_path / file_name(7)).mkdir()
    with pytest.raises(ProverError):
        find_srs(7, tmp_path)


def test_our_own_parameters(tmp_path: Path) -> None:
    with pytest.warns(InsecureKeyWarning, match="parameters for k = 4 from a secret of this process"):
        srs = insecure_srs(4, 123456789)
    assert not srs.published
    math = devices.open_backend("cpu", BLS12_381, Job()).points
    for i in (0, 1, 2, 15):
        power = math.linear_combination(Group.G1, srs.powers[:1], [pow(123456789, i, BLS12_381.r)])
        assert np.array_equal(srs.powers[i], power)
    assert np.array_equal(srs.s_g2, math.linear_combination(Group.G2, srs.g2[None], [123456789]))
    assert np.array_equal(lagrange_points(srs.powers), srs.lagrange)
    write_srs(srs, tmp_path / "own")
    again = read_srs(tmp_path / "own")
    assert srs_bytes(again) == srs_bytes(srs)
    assert not again.published
    with pytest.raises(MalformedFile, match="SHA-256: expected 232f401f"):
        check_srs(tmp_path / "own")


def test_secrets_that_are_none() -> None:
    for secret in (0, BLS12_381.r, 1, domain(4).omega):
        with pytest.raises(InvalidInput, match="0 or a root of unity"):
            insecure_srs(4, secret)
    with pytest.raises(InvalidInput, match="expected k from 0 to 25"):
        insecure_srs(26)


def test_smaller_parameters_are_compared_with_the_published(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "lagrange_points", lambda powers, job: powers)
    with pytest.raises(AssertionError, match="differ from the published"):
        downsize(SMALL / file_name(6), 4, tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()


def test_names_of_files_have_no_place_in_what_is_parsed() -> None:
    assert parse_srs(FIVE).path == "parameters"
