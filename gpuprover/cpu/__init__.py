"""The CPU backend. Importing this package imports nothing; :func:`warmup` compiles everything."""

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
