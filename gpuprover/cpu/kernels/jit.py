"""``@jit``: Numba's compiler with the settings this package needs, and a cache that is this package's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba

from gpuprover.cpu.kept import Kept

F = TypeVar("F", bound=Callable[..., Any])


def jit(function: F) -> F:
    """Compiles lazily, releases the GIL, wraps integers, caches on disk."""
    dispatcher: Any = numba.njit(nogil=True, error_model="numpy")(function)
    dispatcher._cache = Kept(dispatcher.py_func)
    return dispatcher


inline = numba.njit(error_model="numpy")
"""For functions that only other compiled functions call: they are cached with their callers."""
