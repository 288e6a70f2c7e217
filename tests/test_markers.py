"""Markers: each that is registered is used, and they choose where a test of the backends runs."""

from __future__ import annotations

import re
import tomllib

import pytest

from gpuprover.curves import BLS12_381, BN254, CurveParams, Group
from tests.conftest import EMULATED, PORTABLE, is_left_out, is_long
from tests.support.paths import ROOT, TESTS

OTHERS = {"parametrize", "skipif", "timeout", "xfail", "usefixtures", "filterwarnings"}
"""Those of pytest and of its plugins."""
SELECTING = {"both_paths", "on_host", "long_sums", "long_in_integers"}
"""Those that say on which backends a test runs."""


def registered() -> set[str]:
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    return {line.partition(":")[0] for line in options["markers"]}


def used() -> set[str]:
    texts = [path.read_text() for path in TESTS.rglob("*.py") if path.name != "test_markers.py"]
    return {name for text in texts for name in re.findall(r"\bpytest\.mark\.(\w+)", text)}


def test_markers_are_registered_and_used() -> None:
    assert used() - OTHERS == registered()
    assert registered() >= SELECTING


def test_those_of_the_backends_are_on_tests_of_the_backends(request: pytest.FixtureRequest) -> None:
    """On another test they would choose nothing; in a run of all tests that says something of all of them."""
    for item in request.session.items:
        if SELECTING & {mark.name for mark in item.iter_markers()}:
            assert isinstance(item, pytest.Function)
            assert "backend_name" in item.fixturenames, item.nodeid


@pytest.mark.parametrize(
    ("backend_name", "default_path", "marks", "threads", "expected"),
    [
        (None, "ifma", {"both_paths"}, 2, False),
        ("cpu", "ifma", {"on_host"}, 2, False),
        ("reference", "portable", {"on_host"}, 2, False),
        (PORTABLE, "ifma", {"both_paths"}, 2, False),
        (PORTABLE, "ifma", {"on_host"}, 1, True),
        (PORTABLE, "portable", {"both_paths"}, 1, True),
        (EMULATED, "portable", {"both_paths"}, 1, False),
        (EMULATED, "portable", {"both_paths"}, 2, True),
        (EMULATED, "ifma", {"both_paths", "on_host"}, 1, True),
        ("cuda", "ifma", set(), 1, False),
        ("cuda", "ifma", {"on_host"}, 1, True),
    ],
)
def test_what_repeats_is_left_out(
    backend_name: str | None, default_path: str, marks: set[str], threads: int, expected: bool
) -> None:
    assert is_left_out(backend_name, default_path, marks, threads) is expected


@pytest.mark.parametrize(
    ("backend_name", "marks", "curve", "group", "expected"),
    [
        ("cpu", {"long_sums", "long_in_integers"}, BLS12_381, Group.G2, False),
        (EMULATED, {"long_sums"}, BN254, Group.G1, False),
        (EMULATED, {"long_sums"}, BN254, Group.G2, True),
        (EMULATED, {"long_sums"}, BLS12_381, Group.G1, True),
        (EMULATED, {"long_in_integers"}, BLS12_381, Group.G1, False),
        ("reference", {"long_in_integers"}, BN254, Group.G2, False),
        ("reference", {"long_in_integers"}, BLS12_381, None, True),
        ("reference", {"long_sums"}, BLS12_381, None, False),
    ],
)
def test_what_is_long_without_a_compiled_backend(
    backend_name: str, marks: set[str], curve: CurveParams, group: Group | None, expected: bool
) -> None:
    assert is_long(backend_name, marks, curve, group) is expected
