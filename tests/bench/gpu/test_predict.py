"""Predicted times of proofs on a GPU: of all that they launch, and as the documents have them."""

from __future__ import annotations

import pytest
from gpuprover.bench.gpu import predict

from tests.support.paths import ROOT


def test_everything_that_a_proof_launches_has_a_price() -> None:
    """And a proof of four times as many rows takes up to five times as long."""
    small, large = (
        {name: predict.predict(demand) for name, demand in predict.demands(log).items()} for log in (12, 14)
    )
    for name, p in small.items():
        assert 0 < p.seconds[predict.SUMS] < p.total < large[name].total < 5 * p.total
        assert p.seconds[predict.TRANSFORMS] > 0
        assert p.arena < large[name].arena
        assert p.key < large[name].key
    assert {"gather", "evaluate", "fold_onto_coset", "product_results"} <= small["PLONK"].seconds.keys()
    assert small["PLONK"].launches > 2 * small["Groth16"].launches


@pytest.mark.slow
def test_the_table_is_what_is_predicted() -> None:
    assert predict.table() in (ROOT / "kernels" / "README.md").read_text()
