"""Not there yet."""

from __future__ import annotations

from typing import Any

from gpuprover.errors import UnsupportedFile


def hash_to_curve(*_: Any) -> Any:
    raise UnsupportedFile("circuit", "hash_to_curve", "it is not supported yet")
