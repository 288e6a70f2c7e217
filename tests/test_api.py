"""Arguments of any type and value: every public call raises a ProverError, and no other exception."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import gpuprover
from gpuprover.config import load_engine_settings
from gpuprover.formats import json_files
from gpuprover.settings import SETTINGS
from tests.support.paths import VECTORS

STEM = VECTORS / "chain5.bn254"


class Odd:
    """Neither a number nor a path, nor anything else."""

    __slots__ = ()


ODD: list[Any] = [
    None, True, False, 0, -1, 1, 2**64, -(2**64), 10**5000, -(10**5000), 0.5, -0.0, math.inf, -math.inf,
    math.nan, 1j, "", "\ud800", "a\0b", "x" * 5000, "no/such/file", ".", b"", b"\xff", b"no",
    bytearray(b"zkey"), memoryview(b""), memoryview(np.zeros((2, 2)).data), (), [], {}, set(),
    frozenset({1}), [None], (1, 2), {"a": 1}, {1: 2}, [[1], [2]], "12", "0x", Path("no/such"),
    Path("\ud800"), Odd(), Odd, print, len, iter(()), range(3), np.zeros(3), np.zeros((2, 4), np.uint64),
    np.zeros((0, 4), np.uint64), np.array("a"), np.int64(3), np.uint64(5), np.float64(1),
    np.array([object()]), np.zeros((2, 4), ">u8"), np.ones((2, 2, 2)), Exception(), NotImplemented, ...,
]  # fmt: skip

names = st.sampled_from(
    ["pi_a", "pi_b", "IC", "curve", "protocol", "nPublic", "inputs", "wasm", "fuel", "\ud800"]
)
# Hypothesis cannot show numbers of thousands of digits; what a function does is its caller's.
SOME = [x for x in ODD if not callable(x) and not (isinstance(x, int) and abs(x) > 10**99)]
some = st.integers(0, len(SOME) - 1).map(SOME.__getitem__)  # not all of them have a hash
odd = st.one_of(
    some,
    st.text(max_size=5),
    st.integers(),
    st.floats(),
    st.binary(max_size=40),
    st.lists(some, max_size=4),
    st.dictionaries(names, some, max_size=3),
    st.tuples(some, some),
)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("arguments")
    return {
        "folder": folder,
        "key": gpuprover.load_key(f"{STEM}.zkey"),
        "vkey": json_files.read_json(f"{STEM}.vkey.json"),
        "public": json_files.read_json(f"{STEM}.public.json"),
        "proof": json_files.read_json(f"{STEM}.proof.json"),
    }


def client(**given: Any) -> None:
    gpuprover.Client(**given).close()


def engine_settings(**given: Any) -> None:
    """What :func:`gpuprover.create_prover` does with its arguments."""
    load_engine_settings(given)


def calls(good: dict[str, Any]) -> dict[str, tuple[Callable[..., Any], dict[str, Any]]]:
    """The public functions, with arguments with which they work."""
    statement = good["public"], good["proof"]
    prove = {
        "key": good["key"],
        "witness": f"{STEM}.wtns",
        "device": "cpu",
        "threads": 1,
        "memory_limit": None,
    }
    prove |= {"progress": None, "cancel": None, "timeout": 60, "verify": True, "blinding": None}
    setup = {"r1cs": f"{STEM}.r1cs", "zkey": good["folder"] / "out.zkey", "insecure": True, "ptau": None}
    setup |= {
        "device": "cpu",
        "threads": 1,
        "memory_limit": None,
        "progress": None,
        "cancel": None,
        "timeout": 60,
    }
    verify = {"verification_key": good["vkey"], "public_signals": good["public"], "proof": good["proof"]}
    batch = {"verification_key": good["vkey"], "statements": [statement] * 2, "threads": 1, "cancel": None}
    return {
        "load_key": (gpuprover.load_key, {"path": f"{STEM}.zkey"}),
        "prove": (gpuprover.prove, prove),
        "setup": (gpuprover.setup, setup),
        "verify": (gpuprover.verify, {**verify, "threads": 1, "strict": False}),
        "verify_batch": (gpuprover.verify_batch, batch),
        "BackpressureController": (gpuprover.BackpressureController, {"max_concurrent": 2}),
        "Client": (client, {"url": "http://127.0.0.1:1", "token": None}),
        "create_prover": (engine_settings, {row.name: None for row in SETTINGS if row.own}),
    }


NAMES = [
    "load_key",
    "prove",
    "setup",
    "verify",
    "verify_batch",
    "BackpressureController",
    "Client",
    "create_prover",
]
ASYNC = {"AsyncClient", "acreate_prover"}
RECORDS = {
    "MemoryUsage",
    "Progress",
    "ProofJob",
    "ProofResult",
    "Prover",
    "ProverStatus",
    "ProvingKey",
    "RemoteProof",
}
"""What other calls return."""


def test_every_public_call_is_tried() -> None:
    public = {name for name in gpuprover.__all__ if not name.startswith("__")}
    errors = {
        n
        for n in public
        if isinstance(getattr(gpuprover, n), type) and issubclass(getattr(gpuprover, n), Exception)
    }
    assert public - errors == {*NAMES, *ASYNC, *RECORDS, "memory_usage"}


def test_good_arguments_work(good: dict[str, Any]) -> None:
    for function, arguments in calls(good).values():
        function(**arguments)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name == "setup")) for name in NAMES]
)
def test_each_odd_argument(
    good: dict[str, Any], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One argument at a time."""
    monkeypatch.chdir(tmp_path)  # some of them are names of files to write
    function, arguments = calls(good)[name]
    for argument in arguments:
        for value in ODD:
            if argument == "progress" and callable(value):
                continue  # what that raises is its caller's
            tried = copy.copy(value) if isinstance(value, list | dict) else value
            with suppress(gpuprover.ProverError):
                function(**{**arguments, argument: tried})


@pytest.mark.parametrize("name", ["verify", "verify_batch", "prove"])
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_odd_arguments_together(good: dict[str, Any], name: str, data: st.DataObject) -> None:
    function, arguments = calls(good)[name]
    chosen = data.draw(st.sets(st.sampled_from(sorted(arguments)), min_size=1, max_size=3))
    with suppress(gpuprover.ProverError):
        function(**{**arguments, **{argument: data.draw(odd, argument) for argument in sorted(chosen)}})


def _places(document: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    if isinstance(document, dict):
        return found + [
            p for k, v in document.items() if k != "vk_alphabeta_12" for p in _places(v, (*path, k))
        ]
    if isinstance(document, list):
        return found + [p for k, v in enumerate(document[:3]) for p in _places(v, (*path, k))]
    return found


@pytest.mark.parametrize("argument", ["verification_key", "public_signals", "proof"])
def test_odd_values_within_documents(good: dict[str, Any], argument: str) -> None:
    function, arguments = calls(good)["verify"]
    for place in _places(arguments[argument]):
        for value in ODD:
            document = copy.deepcopy(arguments[argument])
            inner = document
            for step in place[:-1]:
                inner = inner[step]
            inner[place[-1]] = value
            with suppress(gpuprover.ProverError):
                assert function(**{**arguments, argument: document}) in (True, False)
