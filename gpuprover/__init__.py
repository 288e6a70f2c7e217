"""gpuprover: Groth16, PLONK and FFLONK proofs from circom's files, fast.

The public names, imported when they are first used::

    key = gpuprover.load_key("circuit.zkey")
    result = gpuprover.prove(key, "witness.wtns")
    gpuprover.verify(key.verification_key, result.public_signals, result.proof)

    with gpuprover.create_prover(circuit_keys_path="circuit-keys") as prover:
        result = prover.prove("circuit", "witness.wtns")

Calls for the Midnight network are in :mod:`gpuprover.midnight_api`.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpuprover.version import VERSION as __version__


class _Beside:
    """Finds the subpackages ``bench`` and ``kernels`` of a checkout, where they lie beside this package.

    Nothing else of a checkout becomes part of it. An installation has both inside, and needs no finder.
    """

    folder = Path(__file__).resolve().parents[1]
    names = ("gpuprover.bench", "gpuprover.kernels")

    @classmethod
    def find_spec(cls, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        found = cls.folder / name.rpartition(".")[2]
        if name not in cls.names or not found.is_dir():
            return None
        return spec_from_file_location(name, found / "__init__.py", submodule_search_locations=[str(found)])


if not (Path(__file__).parent / "kernels").is_dir() and _Beside not in sys.meta_path:
    sys.meta_path.append(_Beside)

_PUBLIC = {
    "load_key": "api",
    "prove": "api",
    "setup": "api",
    "verify": "api",
    "verify_batch": "api",
    "ProofResult": "proving",
    "InsecureKeyWarning": "errors",
    "ProvingKey": "systems.system",
    "Client": "service.client",
    "AsyncClient": "service.client",
    "RemoteProof": "service.client",
    "ServiceError": "service.client",
    "Progress": "job",
    "create_prover": "engine",
    "acreate_prover": "engine",
    "Prover": "engine",
    "ProofJob": "engine",
    "ProverStatus": "engine",
    "BackpressureController": "backpressure",
    "MemoryUsage": "memory",
    "memory_usage": "memory",
    "ProverError": "errors",
    "MalformedFile": "errors",
    "UnsupportedFile": "errors",
    "WitnessMismatch": "errors",
    "UnsatisfiedWitness": "errors",
    "InvalidInput": "errors",
    "OutOfMemory": "errors",
    "CircuitNotFound": "errors",
    "ProofGenerationFailed": "errors",
    "QueueFull": "errors",
    "ShuttingDown": "errors",
    "Aborted": "errors",
    "DeviceError": "errors",
    "InsecureBlindingWarning": "errors",
    "Timeout": "errors",
    "Cancelled": "errors",
}

__all__ = [
    "Aborted",
    "AsyncClient",
    "BackpressureController",
    "Cancelled",
    "CircuitNotFound",
    "Client",
    "DeviceError",
    "InsecureBlindingWarning",
    "InsecureKeyWarning",
    "InvalidInput",
    "MalformedFile",
    "MemoryUsage",
    "OutOfMemory",
    "Progress",
    "ProofGenerationFailed",
    "ProofJob",
    "ProofResult",
    "Prover",
    "ProverError",
    "ProverStatus",
    "ProvingKey",
    "QueueFull",
    "RemoteProof",
    "ServiceError",
    "ShuttingDown",
    "Timeout",
    "UnsatisfiedWitness",
    "UnsupportedFile",
    "WitnessMismatch",
    "__version__",
    "acreate_prover",
    "create_prover",
    "load_key",
    "memory_usage",
    "prove",
    "setup",
    "verify",
    "verify_batch",
]

if TYPE_CHECKING:
    from gpuprover.api import load_key, prove, setup, verify, verify_batch
    from gpuprover.backpressure import BackpressureController
    from gpuprover.engine import ProofJob, Prover, ProverStatus, acreate_prover, create_prover
    from gpuprover.errors import (
        Aborted,
        Cancelled,
        CircuitNotFound,
        DeviceError,
        InsecureBlindingWarning,
        InvalidInput,
        MalformedFile,
        OutOfMemory,
        ProofGenerationFailed,
        ProverError,
        QueueFull,
        ShuttingDown,
        Timeout,
        UnsatisfiedWitness,
        UnsupportedFile,
        WitnessMismatch,
    )
    from gpuprover.job import Progress
    from gpuprover.memory import MemoryUsage, memory_usage
    from gpuprover.proving import ProofResult
    from gpuprover.service.client import AsyncClient, Client, RemoteProof, ServiceError
    from gpuprover.systems.system import ProvingKey


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
