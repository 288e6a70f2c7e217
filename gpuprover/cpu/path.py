"""The CPU's two paths, ``ifma`` (eight lanes on AVX-512 IFMA) and ``portable``: which runs, and what differs.

``PROVER_CPU_PATH`` forces one. Otherwise the features decide that Numba compiles for, which
are the machine's, or ``NUMBA_CPU_FEATURES`` where code is compiled for another machine. With
``GPUPROVER_EMULATE_IFMA=1`` every CPU has them all: the lanes' code runs there slowly, for tests.
"""

from __future__ import annotations

import os
from functools import lru_cache
from typing import NamedTuple

from gpuprover.cpu import buckets, buckets_lanes, ntt_lanes, rows, rows_lanes
from gpuprover.cpu.image import PATH_VARIABLE as VARIABLE
from gpuprover.cpu.image import used_features
from gpuprover.cpu.layout import Field, LaneField, has_lanes, ranges_hold
from gpuprover.curves import CurveParams, FieldParams
from gpuprover.errors import DeviceError, InvalidInput
from gpuprover.polynomial import Domain

PATHS = ("ifma", "portable")
EMULATION = "GPUPROVER_EMULATE_IFMA"
NEEDED = ("avx512f", "avx512dq", "avx512vl", "avx512ifma")


class CpuPath(NamedTuple):
    """One of the paths, with all that is done differently on it.

    Attributes:
        name: ``ifma`` or ``portable``.
        reason: why this process takes it.
        buckets: scratch of one thread for the bucket sums of a multi-scalar multiplication.
        row_sums: scratch of one thread for many short sums of points.
        products: scratch of one thread for many multiplications in step.
    """

    name: str
    reason: str
    buckets: type[buckets.Buckets] | type[buckets_lanes.Buckets]
    row_sums: type[rows.RowSums] | type[rows_lanes.RowSums]
    products: type[rows.Products] | type[rows_lanes.Products]

    @property
    def lanes(self) -> bool:
        """Whether elements are worked on eight at a time, where there are enough of them."""
        return self.name == "ifma"

    def coordinates(self, plain: Field) -> Field:
        """The field of points' coordinates as :attr:`buckets`, :attr:`row_sums`, :attr:`products` take it."""
        return LaneField(plain.params, plain.degree) if self.lanes else plain

    def vectors(self, params: FieldParams) -> LaneField | None:
        """The field as the kernels for vectors in lanes take it; None where the portable ones serve."""
        return LaneField(params) if self.lanes and has_lanes(params) else None

    def transforms_in_lanes(self, domain: Domain) -> bool:
        """Whether :mod:`gpuprover.cpu.ntt_lanes` has the transforms on the domain."""
        return self.lanes and ntt_lanes.supports(domain)


def path_named(name: str, reason: str) -> CpuPath:
    """The path ``ifma`` or ``portable``, whatever the CPU can do."""
    if name == "ifma":
        return CpuPath(name, reason, buckets_lanes.Buckets, rows_lanes.RowSums, rows_lanes.Products)
    assert name == "portable"
    return CpuPath(name, reason, buckets.Buckets, rows.RowSums, rows.Products)


def path_for(curve: CurveParams) -> CpuPath:
    """The path of this process for a curve. Raises as :func:`cpu_path` does."""
    path = cpu_path()
    if path.lanes and not ranges_hold(curve.base):
        return path_named("portable", f"the ranges of eight lanes do not hold for {curve.name}")
    return path


@lru_cache(maxsize=1)
def cpu_features() -> frozenset[str]:
    """The instruction sets that Numba compiles for, as LLVM names them."""
    known = used_features()
    if known is not None:
        return known
    from llvmlite import binding
    from numba import config

    features, cpu = getattr(config, "CPU_FEATURES", None), getattr(config, "CPU_NAME", None)
    if features is not None:
        return frozenset(name[1:] for name in str(features).split(",") if name.startswith("+"))
    if cpu is not None:
        return frozenset()
    return frozenset(name for name, present in binding.get_host_cpu_features().items() if present)


def cpu_path() -> CpuPath:
    """The path of this process.

    Raises:
        InvalidInput: ``PROVER_CPU_PATH`` names none.
        DeviceError: it forces ``ifma`` on a CPU that lacks an instruction set.
    """
    missing = [name for name in NEEDED if name not in cpu_features()]
    if missing and os.environ.get(EMULATION) == "1":
        missing = []
    forced = os.environ.get(VARIABLE, "").strip().lower()
    if forced and forced not in PATHS:
        raise InvalidInput(f"{VARIABLE}: expected {' or '.join(PATHS)}, found {forced[:40]!r}")
    if forced == "ifma" and missing:
        raise DeviceError(f"{VARIABLE}=ifma: this CPU, or the one compiled for, lacks {', '.join(missing)}")
    if forced:
        return path_named(forced, f"{VARIABLE} says so")
    if missing:
        return path_named("portable", f"the CPU lacks {', '.join(missing)}")
    return path_named("ifma", "the CPU has AVX-512 IFMA")
