"""What the CUDA backend hands out: vectors, matrices and bases, wherever they lie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gpuprover.cuda.allocation import Block
from gpuprover.cuda.columns import Span
from gpuprover.cuda.device import Address
from gpuprover.cuda.msm_plan import MsmPlan
from gpuprover.cuda.sparse import MatricesShape, SparseMatrices
from gpuprover.curves import Group
from gpuprover.limbs import Words


class DeviceVector:
    """n elements in Montgomery form; no memory for n = 0.

    Args:
        block: the memory that they lie in, if it is their own.
        at: where they lie, if it is not.
    """

    def __init__(self, n: int, block: Block | None, at: Address = Address(0)) -> None:  # noqa: B008
        self._n, self.block, self._at = n, block, at

    def __len__(self) -> int:
        return self._n

    @property
    def address(self) -> Address:
        return self.block.address if self.block is not None else self._at

    @property
    def span(self) -> Span:
        return Span(self.address, self._n)

    def swap(self, other: Block) -> None:
        """Takes another block of this size, and leaves its own there."""
        assert self.block is not None
        self.block.swap(other)

    def free(self) -> None:
        if self.block is not None:
            self.block.free()


@dataclass
class DeviceMatrices:
    """Matrices that lie in memory of their own, or of their key, or are sent for every product."""

    matrices: SparseMatrices | MatricesShape
    block: Block | None = None

    def free(self) -> None:
        if self.block is not None:
            self.block.free()


@dataclass
class DeviceBases:
    """n bases: on the device, on the host to be sent there, or of the CPU backend; none of these for n = 0.

    Attributes:
        plan: the plan of sums on the device.
        at: where they lie on the device.
        block: what they lie in, if that is their own.
        points: those that are sent.
        host: the CPU backend's handle.
    """

    group: Group
    n: int
    plan: MsmPlan | None = None
    at: Address = Address(0)  # noqa: RUF009
    block: Block | None = None
    points: Words | None = None
    host: Any = None

    def __len__(self) -> int:
        return self.n

    def free(self) -> None:
        if self.block is not None:
            self.block.free()


@dataclass
class Given:
    """Scalars of the host, on the device; those that a proof keeps outlive :meth:`free`."""

    block: Block
    offset: int = 0
    kept: bool = False

    @property
    def address(self) -> Address:
        return Address(self.block.address + self.offset)

    def free(self) -> None:
        if not self.kept:
            self.block.free()
