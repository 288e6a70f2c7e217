"""Every Python process with this folder on its path has one GPU, that of tests/support/emulator.py.

Nothing in the package knows of it: whole programs run as they would on a machine with a GPU. With
``REHEARSAL_BARE`` that machine has little else (bare.py).
"""

import sys
from dataclasses import replace
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))

import bare  # noqa: F401 (before everything else)

from gpuprover.cuda import compile, gpus, msm_plan, probe, residency
from tests.support.emulator import EmulatedDevice

_NAME = "cuda:0"
_gpu = probe.FoundGpu(_NAME, "0", "emulated", "sm_90", 1 << 30, 1 << 30)
_survey = probe.Survey(gpus=(_gpu,), driver="none", driver_cuda=(13, 0), cupy="none")
gpus._survey = lambda: _survey
gpus._open[_NAME] = EmulatedDevice(_NAME)
# The host's compiler makes what runs: there are no cubins to build.
compile.find_cubin = lambda *_: b"emulated"
# As quick_sums of tests/conftest.py: few buckets and small blocks.
msm_plan.MAX_WINDOW = 4
residency.choose_plan = lambda *given: replace(
    msm_plan.choose_plan(*given), tuning=replace(msm_plan.TUNING, block=32)
)
