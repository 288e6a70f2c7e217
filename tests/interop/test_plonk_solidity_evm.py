"""The contracts for PLONK and FFLONK, compiled by solc and run in an Ethereum virtual machine."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from gpuprover.curves import BN254
from gpuprover.systems.fflonk import solidity as fflonk
from gpuprover.systems.plonk import solidity as plonk
from tests.support import forgery
from tests.support.evm import COMPILERS, OPTIMISED, Contract, altered, run_contracts, words
from tests.support.forgery import Statement
from tests.support.plonk import Sample, sample

MODULES: dict[str, ModuleType] = {"plonk": plonk, "fflonk": fflonk}
POINTS = {"plonk": 9, "fflonk": 4}
"""Points with which a proof begins; values follow, 24 words in all."""
GAS = {"plonk": (245_000, 600), "fflonk": (162_000, 600)}
"""What a call takes at most, by itself and for each public signal."""
INFINITE = {"plonk": ("Qr", "Qc", "B", "Z", "T3"), "fflonk": ("C1", "W1")}

both = pytest.mark.parametrize("protocol", MODULES)


def own(name: str, protocol: str) -> Statement:
    """A key and a proof of snarkjs's."""
    found = sample(name, protocol)
    return Statement(found.verification_key, found.public, found.proof)


def forged(protocol: str, n_public: int, power: int, infinite: bool = False) -> Statement:
    forge: Callable[..., Statement] = getattr(forgery, protocol)
    return forge(n_public, power, random.Random(n_public), INFINITE[protocol] if infinite else ())


def call_of(protocol: str, statement: Statement) -> list[str]:
    """The words of a call; where there are no signals, an empty dynamic array, or a zero."""
    call = words(MODULES[protocol].export_calldata(statement.public, statement.proof))
    nothing = [f"{25 * 32:064x}", f"{0:064x}"] if protocol == "plonk" else [f"{0:064x}"]
    return call if statement.public else call + nothing


def refused_early(protocol: str, call: list[str]) -> Iterator[list[str]]:
    """Calls in which one word is not what it may be."""
    for i in range(2 * POINTS[protocol]):
        yield altered(call, i, 1)  # off the curve
        yield altered(call, i, BN254.q)
    for i in range(2 * POINTS[protocol], len(call)):
        yield altered(call, i, BN254.r)


def wrong(protocol: str, call: list[str]) -> Iterator[list[str]]:
    """Calls in which one value or one point is another one."""
    for i in range(2 * POINTS[protocol], len(call)):
        yield altered(call, i, 1)
    for i in range(0, 2 * POINTS[protocol], 2):
        yield [*call[:i], f"{0:064x}", f"{0:064x}", *call[i + 2 :]]
        yield [*call[: i + 1], f"{BN254.q - int(call[i + 1], 16):064x}", *call[i + 2 :]]


def check(protocol: str, node: Path, statements: list[Statement], bad: list[list[list[str]]]) -> None:
    """Proofs that hold are accepted, and all bad ones refused; no call takes more gas than is said."""
    basis, each = GAS[protocol]
    calls = [[call_of(protocol, s), *others] for s, others in zip(statements, bad, strict=True)]
    sources = [MODULES[protocol].export_verifier(s.key) for s in statements]
    outcomes = run_contracts(node, [Contract(s, c) for s, c in zip(sources, calls, strict=True)])
    for statement, asked, outcome in zip(statements, calls, outcomes, strict=True):
        n_public = len(statement.public)
        print(f"{protocol}, {n_public} signals: {outcome['used'][0]} gas, {outcome['bytes']} bytes")
        assert outcome["results"] == [True] + [False] * (len(asked) - 1)
        assert max(outcome["used"]) <= basis + each * n_public  # a wrong proof costs no more than a good one
        assert outcome["bytes"] <= 24576


@both
def test_contract(protocol: str, node: Path) -> None:
    """With public signals and without, when Qr and Qc are at infinity."""
    some, none = statements = [own(name, protocol) for name in ("quirks", "nopub-8gates")]
    call = call_of(protocol, some)
    signals = [altered(call_of(protocol, none), 24, 1)]
    if protocol == "plonk":  # one word in an array, where there may be none
        signals = [[*call_of(protocol, none)[:-1], f"{1:064x}", f"{0:064x}"]]
    bad = [*refused_early(protocol, call), altered(call, 22, 1), altered(call, -1, 1)]
    check(protocol, node, statements, [bad, signals])


@both
@pytest.mark.slow
def test_every_value_and_every_point(protocol: str, node: Path) -> None:
    """One signal, and one point at infinity or several."""
    statements = [own("duplicates", protocol), forged(protocol, 2, 5, infinite=True)]
    call = call_of(protocol, statements[0])
    check(protocol, node, statements, [[*refused_early(protocol, call), *wrong(protocol, call)], []])


@both
@pytest.mark.slow
def test_proofs_of_circom_circuits(protocol: str, node: Path, data_dir: Path) -> None:
    found = [
        Sample(data_dir / "plonk" / "fixed", n, protocol) for n in ("multiplier2", "poseidon2", "merkle20")
    ]
    statements = [Statement(f.verification_key, f.public, f.proof) for f in found]
    check(protocol, node, statements, [[altered(call_of(protocol, s), 20, 1)] for s in statements])


@both
@pytest.mark.slow
def test_many_public_signals(protocol: str, node: Path) -> None:
    """More than fit into offsets of 16 bits."""
    statements = [forged(protocol, count, power) for count, power in ((0, 3), (1, 3), (300, 9), (5000, 13))]
    bad = [[altered(call_of(protocol, s), 24 + i, 1) for i in (0, len(s.public) - 1)] for s in statements[2:]]
    check(protocol, node, statements, [[], [], *bad])


SELECTORS = {"plonk": "ff7240a7", "fflonk": "9121da8a"}


def ways() -> Iterator[Any]:
    """(compiler, pipeline, whether optimised); the oldest compiler has one pipeline.

    Where the stack is short first is tried always, the rest only by the slow tests.
    """
    for compiler in COMPILERS:
        for pipeline in ("legacy",) if compiler == "solc-oldest" else ("legacy", "viaIR"):
            for optimised in (True, False):
                hard = (compiler, optimised) == ("solc-oldest", False)
                yield pytest.param(compiler, pipeline, optimised, marks=() if hard else (pytest.mark.slow,))


@pytest.mark.parametrize(("compiler", "pipeline", "optimised"), list(ways()))
def test_every_compiler_that_the_pragma_allows(
    node: Path, compiler: str, pipeline: str, optimised: bool
) -> None:
    settings = {"optimizer": {"enabled": optimised}} | ({"viaIR": True} if pipeline == "viaIR" else {})
    contracts, names = [], ("duplicates", "nopub-8gates") if compiler == "solc" else ("duplicates",)
    for protocol, module in MODULES.items():
        for name in names:
            statement = own(name, protocol)
            call = call_of(protocol, statement)
            contracts.append(Contract(module.export_verifier(statement.key), [call, altered(call, 0, 1)]))
    outcomes = run_contracts(node, contracts, compiler, settings)
    for outcome in outcomes:
        assert outcome["version"].startswith(COMPILERS[compiler])
        assert outcome["results"] == [True, False]
    found = [outcome["selector"] for outcome in outcomes[:: len(names)]]
    assert found == [*SELECTORS.values()]


@both
@pytest.mark.slow
def test_too_little_gas_never_gives_true(protocol: str, node: Path) -> None:
    statement = own("quirks", protocol)
    source, call = MODULES[protocol].export_verifier(statement.key), call_of(protocol, statement)
    basis, each = GAS[protocol]
    gas = basis + 3 * each
    enough, *little = (Contract(source, [call], amount) for amount in (gas, gas - 15_000, gas // 2, 1_000))
    first, *others = run_contracts(node, [enough, *little])
    assert first["results"] == [True]
    assert all(outcome["results"][0] in (False, "reverted") for outcome in others)


@both
@pytest.mark.slow
@pytest.mark.parametrize("name", ["duplicates", "quirks", "adds"])
@pytest.mark.parametrize("optimised", [True, False])
def test_gas_is_below_that_of_snarkjs(
    protocol: str, name: str, optimised: bool, node: Path, snarkjs: Any, tmp_path: Path
) -> None:
    statement, path = own(name, protocol), tmp_path / "theirs.sol"
    done = snarkjs("zkey", "export", "solidityverifier", sample(name, protocol).key, path)
    assert done.returncode == 0, done.stdout
    call = call_of(protocol, statement)
    sources = MODULES[protocol].export_verifier(statement.key), path.read_text()
    settings = OPTIMISED if optimised else {}
    ours, theirs = run_contracts(
        node, [Contract(s, [call]) for s in sources], "solc", settings, warnings=True
    )
    assert ours["results"] == theirs["results"] == [True]
    assert ours["selector"] == theirs["selector"]
    print(f"{protocol} {name}: {ours['used']} and {theirs['used']} gas")
    assert ours["used"] < theirs["used"]


@both
@pytest.mark.parametrize("name", ["one-gate", "duplicates", "quirks"])
def test_calldata_equals_snarkjs(protocol: str, name: str, oracle: Any) -> None:
    statement = own(name, protocol)
    arguments = statement.public, statement.proof
    in_order = arguments[::-1] if protocol == "plonk" else arguments
    theirs = oracle(f"{protocol}.exportSolidityCallData", *in_order)
    assert MODULES[protocol].export_calldata(*arguments) == theirs


@both
@pytest.mark.slow
@pytest.mark.parametrize("name", ["nopub-8gates", "adds", "quirks"])
def test_calldata_equals_what_snarkjs_prints(protocol: str, name: str, snarkjs: Any, tmp_path: Path) -> None:
    statement, public, proof = own(name, protocol), tmp_path / "public.json", tmp_path / "proof.json"
    public.write_text(json.dumps(statement.public))
    proof.write_text(json.dumps(statement.proof))
    done = snarkjs("zkey", "export", "soliditycalldata", public, proof)
    assert done.returncode == 0, done.stdout
    assert done.stdout.rstrip("\n") == MODULES[protocol].export_calldata(statement.public, statement.proof)
