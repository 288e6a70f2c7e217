"""The benchmark's built-in peers: snarkjs as a command and as a library, on a small circuit of each curve."""

from __future__ import annotations

from pathlib import Path

import pytest
from gpuprover.bench import peers

import gpuprover
from gpuprover.curves import CurveParams
from tests.support.paths import VECTORS


@pytest.mark.parametrize("name", ["snarkjs", "snarkjs-warm"])
def test_snarkjs_proves_beside_us(
    name: str, node: Path, curve: CurveParams, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(node.parent), prepend=":")
    monkeypatch.setenv(peers.SNARKJS_VARIABLE, str(node.parents[1] / "node_modules" / "snarkjs"))
    (peer,), _ = peers.peers_of([name], 60.0, pytest.fail)
    zkey, wtns = (VECTORS / f"chain5.{curve.name}.{kind}" for kind in ("zkey", "wtns"))
    statement = peers.Statement(zkey, wtns, gpuprover.load_key(zkey), tmp_path)
    with peer.prover(statement, lambda: None) as prove:
        samples = [prove(), prove()]  # each proof is verified in there
    assert all(sample.cpu and sample.wall for sample in samples)
