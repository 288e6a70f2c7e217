"""Proofs of PLONK and FFLONK on the emulated device: snarkjs's, under its fixed blinding."""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache
from typing import Any

from gpuprover.cuda.residency import Residency
from gpuprover.demand import Budget
from gpuprover.formats.wtns import Witness, read_witness
from gpuprover.job import Job
from gpuprover.systems.fflonk.record import SYSTEM as _FFLONK
from gpuprover.systems.plonk.record import SYSTEM as _PLONK
from gpuprover.systems.system import ProvingKey
from tests.support.cuda_proofs import backend_on
from tests.support.plonk import FFLONK, PLONK, Sample, sample

SYSTEMS = {system.name: system for system in (_PLONK, _FFLONK)}
SAMPLES = [*(sample(name) for name in PLONK), *(sample(name, "fflonk") for name in FFLONK)]
CHAINED = sample("adds"), sample("adds", "fflonk")
"""With sums of sums among their signals."""


@lru_cache
def witness(which: Sample) -> Witness:
    return read_witness(which.witness)


def key(which: Sample) -> ProvingKey:
    """A key of its own for every call: its residents are nobody else's."""
    loaded: ProvingKey = SYSTEMS[which.protocol].load_key(which.key)
    return loaded


def prove(
    which: Sample,
    loaded: ProvingKey,
    gpu: Residency,
    job: Job | None = None,
    host_parts: Collection[str] = (),
    budget: int | None = None,
) -> dict[str, Any]:
    """The document of a proof, which is ``which.proof`` if it is right."""
    system = SYSTEMS[which.protocol]
    backend = backend_on(gpu, loaded.curve, job, host_parts)
    proof = system.prove(loaded, witness(which), backend, which.blinding, Budget(device=budget))
    return system.write_proof(proof, loaded.curve)
