"""``python -m gpuprover.bench.gpu.predict``: how long warm proofs should take on an H200; no GPU is needed.

The steps of a proof are run on a device that does nothing but add up what its launches would take. Sums are
predicted as plans of them are chosen (:mod:`gpuprover.cuda.msm_plan`), and everything else by what takes
longest: its wide multiplications, at the rate that sums are assumed to reach, or its bytes. Work on several
streams at once counts one after the other; what the host does meanwhile does not count.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from gpuprover.cuda.backend import CudaBackend
from gpuprover.cuda.device import Device, Program
from gpuprover.cuda.msm_plan import COSTS, predicted_seconds
from gpuprover.cuda.rehearsal import Nothing
from gpuprover.cuda.residency import ArenaPart, Residency, TwiddlesPart
from gpuprover.curves import BLS12_381, BN254, CurveParams, Group
from gpuprover.demand import UNLIMITED, Demand
from gpuprover.devices import open_backend
from gpuprover.job import Job
from gpuprover.limbs import generator
from gpuprover.midnight.architecture import BASIC_CHIPS, Architecture
from gpuprover.midnight.keys import VerifierKey
from gpuprover.midnight.profile import V6
from gpuprover.plonkish.key import Sizes
from gpuprover.polynomial import Coset, Direction, Domain, Order
from gpuprover.systems.fflonk import prover as fflonk
from gpuprover.systems.groth16 import prover as groth16
from gpuprover.systems.midnight import prover as midnight
from gpuprover.systems.midnight.argument import argument
from gpuprover.systems.midnight.documents import VerificationKey
from gpuprover.systems.plonk import prover as plonk

from ..host import H200, Model

PRODUCT, TWIDDLE = 129, 99
"""Wide multiplications of a product in Fr with what is beside it, and of one with a twiddle factor."""
INVERSION = 90
"""Products in one."""
PASS = 8
"""Levels of a transform in one pass over memory."""
BANDWIDTH = 4e12
"""Bytes a second of 4.8e12 that are published."""
ELEMENT = 32
LOGS = 16, 18, 20
RANGE_COLUMNS = 1
"""Columns with a range lookup in the circuits of Midnight's that are predicted."""
GATES, CONSTRAINTS = 200, 3
"""Rows that no gate takes, and entries of matrices for a constraint, in the circuits that are predicted."""
SUMS, TRANSFORMS = "sums", "transforms"

Price = tuple[float, float]
"""Products and elements read or written."""
PRICES: dict[str, Callable[..., Price]] = {
    "combine": lambda terms, scalars, count, out, n: (n * count, n * (count + 1)),
    # About half of the instructions are products.
    "evaluate": lambda p, r, s, o, steps, reads, scalars, n: (0.55 * steps * n, n * (reads + 1)),
    "fold_onto_coset": lambda v, length, squares, log_n, out: (2 << log_n, 2 << log_n),
    "powers": lambda out, constants, n: (n, n),
    "scale_powers": lambda v, constants, lo, n: (2 * n, 2 * n),
    "pointwise": lambda operation, a, b, out, lo, n: (n, 3 * n),
    "multiply_subtract": lambda a, b, c, lo, n: (n, 4 * n),
    "convert": lambda operation, source, out, lo, n: (n, 2 * n),
    "batch_inverse": lambda source, out, lo, n: ((4 + INVERSION / 64) * n, 4 * n),
    "product_totals": lambda v, n, *rest: (n, n),
    "product_results": lambda v, n, *rest: (2 * n, 2 * n),
    "division_totals": lambda v, n, *rest: (n, n),
    "division_results": lambda v, n, *rest: (2 * n, 2 * n),
    "gather": lambda v, length, indices, out, n, outside: (0, 2.2 * n),
    "interleave": lambda terms, count, out, n: (0, 2 * n),
    "deinterleave": lambda v, outs, count, n: (0, 2 * n),
    "combine_signals": lambda *a: (0, a[8] / 16),
    # Their sizes are in tables; of sparse products, a circuit's matrices tell.
    "values_by_blocks": lambda *a: (0, 0),
    "values_of_blocks": lambda *a: (0, 0),
    "multiply_chunks": lambda *a: (0, 0),
}
"""Kernel -> its price by its arguments, but for those of transforms and sums."""
OF_TABLES = "multiply_row"
"""The kernel that makes tables, which a warm proof has already."""


def _seconds(wide: float, elements: float) -> float:
    rate = COSTS.share * COSTS.multiplier * COSTS.clock * H200.multiprocessors
    return max(wide / rate, elements * ELEMENT / BANDWIDTH)


class _Priced(Nothing):
    """Adds up seconds, by kernel, and launches."""

    def __init__(self) -> None:
        super().__init__(cast(Device, Model()))
        self.took: dict[str, float] = defaultdict(float)
        self.launches = 0

    def launch(self, program: Program, kernel: str, blocks: int, threads: int, *words: int, **_: Any) -> None:
        if kernel == OF_TABLES:
            return
        self.launches += 1
        products, elements = PRICES[kernel](*words)
        self.took[kernel] += COSTS.launch + _seconds(PRODUCT * products, elements)

    def run(self, launches: Sequence[Any], *_: Any) -> None:
        self.launches += len(launches)


class _Predicting(CudaBackend):
    """Transforms and sums by their sizes."""

    def _add(self, what: str, seconds: float) -> None:
        device = getattr(self._device, "device", self._device)
        if isinstance(device, _Priced):
            device.took[what] += seconds

    def ntt(
        self,
        v: Any,
        domain: Domain,
        direction: Direction,
        order: Order = Order.NATURAL_TO_NATURAL,
        coset: Coset | int = Coset.NONE,
    ) -> Any:
        # A coset that is named by a number is another kernel's, beside a transform without one.
        if not isinstance(coset, int):
            self._add(TRANSFORMS, _transform(domain))
        return super().ntt(v, domain, direction, order, coset)

    def to_coset_in_place(self, vectors: Any, domain: Domain, coset: Coset) -> Any:
        self._add(TRANSFORMS, 2 * len(vectors) * _transform(domain))
        return super().to_coset_in_place(vectors, domain, coset)

    def values_at(self, queries: Any) -> list[int]:
        n = sum(len(v) for v, _ in queries)
        self._add("values_by_blocks", _seconds(PRODUCT * n, n))
        return super().values_at(queries)

    def msm_many(self, requests: Any, meanwhile: Callable[[], None] = lambda: None) -> Any:
        for bases, scalars in requests:
            for plan in {b.plan for b in bases if b.plan is not None}:
                self._add(SUMS, predicted_seconds(plan, H200) * len(scalars) / plan.n)
        return super().msm_many(requests, meanwhile)


def _transform(domain: Domain) -> float:
    passes = -(-domain.log_n // PASS)
    products = domain.size * domain.log_n / 2
    return passes * COSTS.launch + _seconds(TWIDDLE * products, 2 * domain.size * passes)


@dataclass(frozen=True)
class Prediction:
    """What a warm proof should take.

    Attributes:
        seconds: by kernel, and of sums and transforms.
        launches: their number.
        arena, key: bytes of the device, for the proof and for what stays of its key.
    """

    seconds: dict[str, float]
    launches: int
    arena: int
    key: int

    @property
    def total(self) -> float:
        return sum(self.seconds.values())


def predict(demand: Demand) -> Prediction:
    """A proof of a key that lies on the device, with tables."""
    job, owner = Job(threads=1), _Owner()
    gpu = Residency(Nothing(cast(Device, Model())), H200.memory)
    backend = _Predicting(demand.curve, job, gpu, open_backend("cpu", demand.curve, job))
    for _ in range(3):
        with backend.session(demand, owner, UNLIMITED) as chosen:
            pass
    layout = gpu.residents.noted(owner).layout
    device = _Priced()
    arena = backend.rehearsed(chosen, layout, device)
    # With bases that other keys share.
    key = sum(e.size for e in gpu.residents.all() if not isinstance(e.kind, ArenaPart | TwiddlesPart))
    return Prediction(dict(device.took), device.launches, arena, key)


class _Owner:
    """In place of a key."""


def demands(log: int) -> dict[str, Demand]:
    """Name -> a proof on a domain of 2^log that its circuit fills."""
    n = 1 << log
    sizes = Sizes(n, 1, n, 0, n - GATES)

    def of_groth16(curve: CurveParams) -> Demand:
        return groth16.demand(curve, n - GATES + 2, 1, n, CONSTRAINTS * n)

    return {
        "Groth16": of_groth16(BN254),
        "PLONK": plonk.demand(BN254, sizes),
        "FFLONK": fflonk.demand(sizes),
        "Groth16, BLS12-381": of_groth16(BLS12_381),
        "PLONK, BLS12-381": plonk.demand(BLS12_381, sizes),
        "Midnight": _of_midnight(log),
    }


def _of_midnight(log: int) -> Demand:
    """A circuit with all chips that can be proven; a table's columns count as full, which they never are."""
    chips = Architecture(BASIC_CHIPS, RANGE_COLUMNS)
    shape, point = argument(V6, chips), generator(BLS12_381, Group.G1)[None]
    fixed, permutation = (np.repeat(point, len(names), axis=0) for names in (shape.fixed, shape.sigma))
    return midnight.demand(
        VerificationKey(VerifierKey(V6, chips, 8, 1, log, fixed, permutation, "predicted"))
    )


def table() -> str:
    """Milliseconds and the parts of sums and transforms, as rows of a Markdown table."""
    found: dict[str, list[str]] = {}
    for log in LOGS:
        for name, demand in demands(log).items():
            p = predict(demand)
            parts = " / ".join(f"{1e3 * p.seconds.get(part, 0.0):.1f}" for part in (SUMS, TRANSFORMS))
            found.setdefault(name, []).append(f"{1e3 * p.total:.1f} ({parts})")
            if log == LOGS[-1]:
                found[name] += [str(p.launches), f"{p.arena / 1e9:.1f}", f"{p.key / 1e9:.1f}"]
    return "\n".join(f"| {name} | {' | '.join(cells)} |" for name, cells in found.items())


if __name__ == "__main__":
    print(table())
