"""Which of the CPU's paths runs: ``ifma`` (eight lanes on AVX-512 IFMA) or ``portable``.

``PROVER_CPU_PATH`` forces one. Otherwise the features decide that Numba compiles for, which
are the machine's, or ``NUMBA_CPU_FEATURES`` where code is compiled for another machine. With
``GPUPROVER_EMULATE_IFMA=1`` every CPU has them all: the lanes' code runs there slowly, for tests.
"""

from __future__ import annotations

import os
from functools import lru_cache
from typing import NamedTuple

from gpuprover.cpu.image import PATH_VARIABLE as VARIABLE
from gpuprover.cpu.image import used_features
from gpuprover.errors import DeviceError, InvalidInput

PATHS = ("ifma", "portable")
EMULATION = "GPUPROVER_EMULATE_IFMA"
NEEDED = ("avx512f", "avx512dq", "avx512vl", "avx512ifma")


class CpuPath(NamedTuple):
    """The path's name, and why it was chosen."""

    name: str
    reason: str


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
        return CpuPath(forced, f"{VARIABLE} says so")
    if missing:
        return CpuPath("portable", f"the CPU lacks {', '.join(missing)}")
    return CpuPath("ifma", "the CPU has AVX-512 IFMA")
