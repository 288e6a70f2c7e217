"""Execution of a circuit on a preimage: whether a statement holds, and what it says."""

from __future__ import annotations

from gpuprover.midnight.ir.circuit import Circuit
from gpuprover.midnight.ir.machine import Execution
from gpuprover.midnight.ir.machine_v2 import MachineV2
from gpuprover.midnight.ir.machine_v3 import MachineV3
from gpuprover.midnight.preimage import Preimage

_MACHINES = {2: MachineV2, 3: MachineV3}


def run(circuit: Circuit, preimage: Preimage) -> Execution:
    """What the network's own software calls a check.

    Raises:
        FailedCheck: the preimage does not satisfy the circuit; the message has no values of it.
        UnsupportedFile: an operation or a type that cannot be executed here, named before anything runs.
    """
    return _MACHINES[circuit.version[0]](circuit, preimage).run()
