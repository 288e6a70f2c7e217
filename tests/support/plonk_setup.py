"""Set-ups of PLONK and FFLONK from powers of τ that lie in a key, where no powers-of-tau file is at hand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from gpuprover.backend import Backend, Vector
from gpuprover.curves import Group
from gpuprover.limbs import Words
from gpuprover.plonkish import setup


class KeyPowers:
    """See :class:`gpuprover.plonkish.setup.Powers`."""

    warnings = ()

    def __init__(self, points: Words, tau_g2: Words, backend: Backend) -> None:
        self.count, self.tau_g2 = len(points), tau_g2
        self._points, self._backend = points, backend

    def blocks(self) -> Iterator[Words]:
        yield self._points

    def commit(self, coefficients: Vector, first: int = 0) -> Words:
        points = self._points[first : first + len(coefficients)]
        return self._backend.msm(self._backend.prepare_bases(Group.G1, points), coefficients)

    def lagrange(self, log_n: int) -> Words | None:
        return None


def use_powers(points: Words, tau_g2: Words, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on set-ups use these powers, whatever they are asked for."""

    def powers_for(r1cs: Any, ptau: Any, log_n: int, count: int, backend: Backend) -> KeyPowers:
        assert len(points) == count
        return KeyPowers(points, tau_g2, backend)

    monkeypatch.setattr(setup, "powers_for", powers_for)
