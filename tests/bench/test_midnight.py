"""The benchmark of Midnight's proofs, on a small circuit."""

from __future__ import annotations

from pathlib import Path

import pytest
from gpuprover.bench import midnight
from gpuprover.bench.rows import read_rows

from tests.support.midnight import SMALL


def test_rows_of_a_circuit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(midnight, "BATCH", 2)
    monkeypatch.setattr(midnight, "WARM_UP", 1)
    output = tmp_path / "rows.jsonl"
    circuit = str(SMALL / "increment.prover")
    assert midnight.main([circuit, "--parameters", str(SMALL), "--rounds", "1", "--output", str(output)]) == 0
    rows = read_rows([output])
    assert [row["operation"] for row in rows] == [
        "midnight prove",
        "midnight verify",
        "midnight verify batch",
    ]
    assert {row["circuit"] for row in rows} == {"increment"}
    assert all(row["cpu"]["median_s"] > 0 for row in rows)
    assert "quotient" in rows[0]["phases"]
    assert "each_ns" in rows[2]
    # A peer that is not there is a row with a reason.
    more = [circuit, "--parameters", str(SMALL), "--rounds", "1", "--output", str(output)]
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(midnight.Failed, match="not on PATH"):
        midnight.main([*more, "--packages", str(tmp_path)])
