"""Mutated files: every outcome is a typed error, or a parse that keeps its promises."""

from __future__ import annotations

import copy
import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import gpuprover
from gpuprover.curves import CURVES
from gpuprover.errors import ProverError
from tests.fuzz.mutations import (
    BINARY,
    CIRCUITS,
    GATES,
    JSON,
    MIDNIGHT,
    MUTATIONS,
    SEEDS,
    TEXT_MUTATIONS,
    check,
    check_document,
    loaded,
    mutated,
)
from tests.support.plonk import sample

pytestmark = pytest.mark.fuzz

relaxed = settings(
    deadline=None,
    print_blob=True,
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
        HealthCheck.function_scoped_fixture,
    ],
)
quick = settings(relaxed, max_examples=150)
long = settings(relaxed, max_examples=4000)

curves = pytest.mark.parametrize("curve", [c.name for c in CURVES])


def lists_of(names: tuple[str, ...]) -> st.SearchStrategy[list[tuple[str, int, int]]]:
    mutation = st.tuples(st.sampled_from(names), st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1))
    return st.lists(mutation, min_size=1, max_size=4)


any_mutations = lists_of(tuple(MUTATIONS))
text_mutations = lists_of(TEXT_MUTATIONS)


@pytest.mark.parametrize("name", SEEDS)
def test_the_seeds_are_good(name: str) -> None:
    assert check(name, SEEDS[name])


@curves
@pytest.mark.parametrize("kind", BINARY)
@quick
@given(mutations=any_mutations)
def test_damaged_binary_files(curve: str, kind: str, mutations: list[tuple[str, int, int]]) -> None:
    check(f"{curve}.{kind}", mutated(SEEDS[f"{curve}.{kind}"], mutations))


@pytest.mark.slow
@curves
@pytest.mark.parametrize("kind", BINARY)
@long
@given(mutations=any_mutations)
def test_damaged_binary_files_for_long(curve: str, kind: str, mutations: list[tuple[str, int, int]]) -> None:
    check(f"{curve}.{kind}", mutated(SEEDS[f"{curve}.{kind}"], mutations))


@curves
@pytest.mark.parametrize("kind", JSON)
@quick
@given(mutations=text_mutations)
def test_damaged_json_text(curve: str, kind: str, mutations: list[tuple[str, int, int]]) -> None:
    check(f"{curve}.{kind}", mutated(SEEDS[f"{curve}.{kind}"], mutations))


keys_of_gates = st.sampled_from([name for name in GATES if name.endswith("zkey")])
documents_of_gates = st.sampled_from([name for name in GATES if name.endswith("json")])


@quick
@given(name=keys_of_gates, mutations=any_mutations)
def test_damaged_keys_of_gates(name: str, mutations: list[tuple[str, int, int]]) -> None:
    check(name, mutated(SEEDS[name], mutations))


@quick
@given(name=documents_of_gates, mutations=text_mutations)
def test_damaged_documents_of_gates(name: str, mutations: list[tuple[str, int, int]]) -> None:
    check(name, mutated(SEEDS[name], mutations))


@quick
@given(name=st.sampled_from(sorted(MIDNIGHT)), mutations=text_mutations)
def test_damaged_files_of_midnight(name: str, mutations: list[tuple[str, int, int]]) -> None:
    check(name, mutated(SEEDS[name], mutations))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(MIDNIGHT))
@long
@given(mutations=lists_of((*TEXT_MUTATIONS, "field")))
def test_damaged_files_of_midnight_for_long(name: str, mutations: list[tuple[str, int, int]]) -> None:
    check(name, mutated(SEEDS[name], mutations))


@pytest.mark.slow
@long
@given(name=keys_of_gates | documents_of_gates, mutations=any_mutations)
def test_damaged_files_of_gates_for_long(name: str, mutations: list[tuple[str, int, int]]) -> None:
    check(name, mutated(SEEDS[name], mutations))


binary_circuits = st.sampled_from([name for name in CIRCUITS if name.endswith(".bzkir")])
documents_of_circuits = st.sampled_from([name for name in CIRCUITS if name.endswith(".zkir")])


@quick
@given(name=binary_circuits | documents_of_circuits, mutations=text_mutations)
def test_damaged_circuits(name: str, mutations: list[tuple[str, int, int]]) -> None:
    check(name, mutated(SEEDS[name], mutations))


@pytest.mark.slow
@long
@given(name=binary_circuits | documents_of_circuits, mutations=any_mutations)
def test_damaged_circuits_for_long(name: str, mutations: list[tuple[str, int, int]]) -> None:
    check(name, mutated(SEEDS[name], mutations))


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | st.integers(0, 2**400).map(str),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def replaced(document: Any, path: list[int], value: Any) -> Any:
    """The document with the node that a list of choices leads to replaced."""
    document = copy.deepcopy(document)
    parent, place, node = None, None, document
    for choice in path:
        if not isinstance(node, dict | list) or not node:
            break
        keys = list(node) if isinstance(node, dict) else range(len(node))
        parent, place = node, keys[choice % len(keys)]
        node = node[place]
    if parent is None:
        return value
    parent[place] = value
    return document


@curves
@pytest.mark.parametrize("kind", JSON)
@quick
@given(path=st.lists(st.integers(0, 15), max_size=5), value=json_values)
def test_documents_with_something_else_inside(curve: str, kind: str, path: list[int], value: Any) -> None:
    name = f"{curve}.{kind}"
    with suppress(ProverError):
        check_document(name, replaced(loaded(name), path, value))


@settings(relaxed, max_examples=60)
@given(name=documents_of_circuits, path=st.lists(st.integers(0, 40), max_size=5), value=json_values)
def test_circuits_with_something_else_inside(name: str, path: list[int], value: Any) -> None:
    check(name, json.dumps(replaced(loaded(name), path, value)).encode())


@quick
@given(name=documents_of_gates, path=st.lists(st.integers(0, 15), max_size=5), value=json_values)
def test_documents_of_gates_with_something_else_inside(name: str, path: list[int], value: Any) -> None:
    with suppress(ProverError):
        check_document(name, replaced(loaded(name), path, value))


# From damaged files to proofs -------------------------------------------------------


# What is done about a damaged file has little to do with the curve.
proving = pytest.mark.parametrize("curve", ["bn254", pytest.param("bls12-381", marks=pytest.mark.slow)])


def prove_or_refuse(key: bytes, witness: bytes, tmp_path: Any) -> None:
    """Proving with damaged files ends in a typed error, or in a proof that verifies."""
    path = tmp_path / "k.zkey"
    path.write_bytes(key)
    try:
        result = gpuprover.prove(path, witness, threads=1)
    except ProverError:
        return
    vkey = gpuprover.load_key(path).verification_key
    assert gpuprover.verify(vkey, result.public_signals, result.proof)


@proving
@settings(relaxed, max_examples=60)
@given(mutations=any_mutations)
def test_proving_with_a_damaged_key(curve: str, mutations: list[tuple[str, int, int]], tmp_path: Any) -> None:
    prove_or_refuse(mutated(SEEDS[f"{curve}.zkey"], mutations), SEEDS[f"{curve}.wtns"], tmp_path)


@proving
@settings(relaxed, max_examples=60)
@given(mutations=any_mutations)
def test_proving_with_a_damaged_witness(
    curve: str, mutations: list[tuple[str, int, int]], tmp_path: Any
) -> None:
    prove_or_refuse(SEEDS[f"{curve}.zkey"], mutated(SEEDS[f"{curve}.wtns"], mutations), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["plonk", "fflonk"])
@settings(relaxed, max_examples=300)
@given(key=any_mutations, witness=st.just([]) | any_mutations)
def test_proving_with_damaged_files_of_gates(protocol: str, key: Any, witness: Any, tmp_path: Any) -> None:
    own = sample("duplicates", protocol).witness.read_bytes()
    prove_or_refuse(mutated(SEEDS[f"bn254.{protocol}.zkey"], key), mutated(own, witness), tmp_path)


@pytest.mark.slow
@proving
@settings(relaxed, max_examples=1500)
@given(key=st.just([]) | any_mutations, witness=st.just([]) | any_mutations)
def test_proving_with_damaged_files_for_long(curve: str, key: Any, witness: Any, tmp_path: Any) -> None:
    data = mutated(SEEDS[f"{curve}.zkey"], key), mutated(SEEDS[f"{curve}.wtns"], witness)
    prove_or_refuse(*data, tmp_path)
