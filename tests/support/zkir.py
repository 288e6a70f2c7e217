"""Circuits and preimages for tests, in a few words."""

from __future__ import annotations

from typing import Any

from gpuprover.midnight.ir.circuit import Circuit
from gpuprover.midnight.ir.v2 import parse_document as parse_v2
from gpuprover.midnight.ir.v3 import parse_document as parse_v3
from gpuprover.midnight.preimage import Preimage

NATIVE = "Scalar<BLS12-381>"


def circuit_v2(inputs: int, *instructions: dict[str, Any], committed: bool = False) -> Circuit:
    """A circuit of ZKIR 2.0."""
    document = {
        "version": {"major": 2, "minor": 0},
        "do_communications_commitment": committed,
        "num_inputs": inputs,
        "instructions": list(instructions),
    }
    return parse_v2(document, "circuit")


def circuit_v3(
    inputs: dict[str, str],
    *instructions: dict[str, Any],
    outputs: tuple[str, ...] = (),
    committed: bool = False,
    minor: int = 0,
) -> Circuit:
    """A circuit of ZKIR 3; ``inputs`` are types by names."""
    document = {
        "version": {"major": 3, "minor": minor},
        "do_communications_commitment": committed,
        "inputs": [{"name": name, "type": kind} for name, kind in inputs.items()],
        "outputs": list(outputs),
        "instructions": list(instructions),
    }
    return parse_v3(document, "circuit")


def op(name: str, **fields: Any) -> dict[str, Any]:
    """An instruction; a field ``kind`` is the one that JSON calls ``type``."""
    return {"op": name, **{"type" if key == "kind" else key: value for key, value in fields.items()}}


def preimage(
    *inputs: int,
    declared: tuple[int, ...] = (),
    public: tuple[int, ...] = (),
    private: tuple[int, ...] = (),
    binding: int = 31337,
    commitment: tuple[int, int] | None = None,
) -> Preimage:
    """A preimage with these values and no others."""
    return Preimage(inputs, private, declared, public, binding, commitment, "test")
