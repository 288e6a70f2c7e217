"""The CPU backend. Importing this package imports nothing; :func:`warmup` compiles everything.

:mod:`.backend` and :mod:`.points` serve the contracts. Below them lies one driver for each operation:
:mod:`.msm`, :mod:`.multiples` (kept for small keys that prove often), :mod:`.ntt`, :mod:`.columns`,
:mod:`.pairing`, :mod:`.combine` (what a set-up needs), :mod:`.membership` (subgroup tests of many points).
Their kernels have the same names in :mod:`.kernels`, and rest there on ``field`` (Montgomery arithmetic),
``inversion``, ``curve`` and ``vector``. A field is a Numba type that carries its modulus, so that one source
serves every field, group and curve. Arrays go to kernels as addresses: mapped and own memory share one
compiled form.

Two paths (:mod:`.path`): the portable one, and eight lanes of 52-bit limbs with AVX-512 IFMA. A module
``X_lanes`` is the second writing of ``X``; ``kernels/limbs``, ``lanes``, ``lanes_memory``, ``loose`` and
``extension_lanes`` are the lanes' arithmetic. Points enter lanes by shifts, on an isomorphic curve, which
only ``buckets_lanes`` and ``rows_lanes`` know. The suites run on both paths.

:mod:`.compiled` is the only way to kernels, and :mod:`.layout` what both sides agree on. :mod:`.kept` keeps
Numba's code under a hash of its sources (:mod:`.sources`): an edit of a driver leaves it valid. :mod:`.bake`
puts a curve's kernels into an image, which :mod:`.image` maps: a process that calls
:func:`gpuprover.devices.use_images` needs no Numba, and what an image lacks is compiled as ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpuprover.curves import CurveParams
    from gpuprover.job import Job


def warmup(
    curves: Sequence[CurveParams] | None = None, job: Job | None = None, *, proofs_only: bool = False
) -> None:
    """Compiles (or loads from the cache) every kernel for the given curves, default all; makes their images.

    ``proofs_only`` leaves out images, and what only set-ups and checks of whole keys call.

    Progress is reported as one phase a curve, named ``compile <curve>``.
    """
    from gpuprover.cpu.warm import compile_curve
    from gpuprover.curves import PAIRING_CURVES
    from gpuprover.job import Job

    job = job or Job()
    for curve in PAIRING_CURVES if curves is None else curves:
        with job.phase(f"compile {curve.name}"):
            compile_curve(curve, job, proofs_only)
            if not proofs_only:
                from gpuprover.cpu import bake

                # An image saves time and memory, and nothing depends on it.
                with suppress(bake.BakeError):
                    bake.bake_missing(curve)
