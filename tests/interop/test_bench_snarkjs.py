"""The benchmark's built-in peers: snarkjs as a command and as a library, on a small circuit of each curve."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from gpuprover.bench import peers, rows, setups
from gpuprover.bench.measure import Variant

import gpuprover
from gpuprover.curves import BN254, CurveParams
from gpuprover.job import Job
from gpuprover.systems.system import system_named
from tests.support.paths import VECTORS
from tests.support.plonk import sample


@pytest.fixture(autouse=True)
def snarkjs_here(node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(node.parent), prepend=":")
    monkeypatch.setenv(peers.SNARKJS_VARIABLE, str(node.parents[1] / "node_modules" / "snarkjs"))


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["plonk", "fflonk"])
@pytest.mark.parametrize("name", ["snarkjs", "snarkjs-warm"])
def test_snarkjs_proves_by_other_systems(protocol: str, name: str, tmp_path: Path) -> None:
    (peer,), _ = peers.peers_of([name], 60.0, pytest.fail)
    files = sample("duplicates", protocol)
    statement = peers.Statement(files.key, files.witness, gpuprover.load_key(files.key), tmp_path)
    with peer.prover(statement, lambda: None) as prove:
        assert prove().cpu  # the proof is verified in there


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["plonk", "fflonk"])
def test_snarkjs_sets_up_beside_us(
    protocol: str, ptau: Callable[[CurveParams], Path], tmp_path: Path
) -> None:
    """The keys are the same, or its row would be a failure."""
    circuit = setups.Circuit("one gate", sample("one-gate").circuit, ptau(BN254))
    found = rows.Rows(tmp_path / "rows.jsonl")
    systems, variants = [system_named(protocol)], [Variant("cpu", None)]
    setups.measure_setups(circuit, systems, variants, 1, found, Job(threads=1), peer=True, limit=60.0)
    found.close()
    ours, theirs = found.all
    assert (ours["implementation"], theirs["implementation"]) == ("gpuprover", "snarkjs")
    assert theirs["faster"][0]["cpu"]["median"] > 0
    assert "error" not in theirs


@pytest.mark.parametrize("name", ["snarkjs", "snarkjs-warm"])
def test_snarkjs_proves_beside_us(name: str, curve: CurveParams, tmp_path: Path) -> None:
    (peer,), _ = peers.peers_of([name], 60.0, pytest.fail)
    zkey, wtns = (VECTORS / f"chain5.{curve.name}.{kind}" for kind in ("zkey", "wtns"))
    statement = peers.Statement(zkey, wtns, gpuprover.load_key(zkey), tmp_path)
    with peer.prover(statement, lambda: None) as prove:
        samples = [prove(), prove()]  # each proof is verified in there
    assert all(sample.cpu and sample.wall for sample in samples)
