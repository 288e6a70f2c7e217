"""How this package calls its kernels: from an image where one is in use, else through Numba.

A driver says ``_kernels = Kernels("pairing")`` and calls ``_kernels.miller_loop(F, …)``. What answers is
settled when a kernel is first called; Numba is imported by then and not before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, ClassVar

from gpuprover.cpu import image
from gpuprover.cpu.image import Kinds, described, kind_of

Kernel = Callable[..., Any]
Call = tuple[str, Kinds]
"""A kernel's name, ``module.function``, and the kinds of its arguments."""


def dispatcher(name: str) -> Any:
    """Numba's, of the kernel ``module.function``."""
    module, function = name.split(".")
    return getattr(import_module(f"gpuprover.cpu.kernels.{module}"), function)


def _find(name: str) -> Kernel:
    forms = image.functions(name)
    if not forms:
        return dispatcher(name)

    def kernel(*arguments: Any) -> Any:
        kinds, flat = described(arguments)
        form = forms.get(kinds)
        return dispatcher(name)(*arguments) if form is None else form(flat)

    return kernel


class Kernels:
    """The kernels of one module of :mod:`gpuprover.cpu.kernels`, as attributes."""

    _all: ClassVar[list[Kernels]] = []
    _calls: ClassVar[set[Call] | None] = None

    def __init__(self, module: str) -> None:
        self._module, self._found = module, set[str]()
        self._all.append(self)

    def __getattr__(self, function: str) -> Kernel:
        name, calls = f"{self._module}.{function}", self._calls
        if calls is not None:

            def recorded(*arguments: Any) -> Any:
                calls.add((name, tuple(map(kind_of, arguments))))
                return dispatcher(name)(*arguments)

            return recorded
        kernel = _find(name)
        # The next look-up finds it without coming here.
        setattr(self, function, kernel)
        self._found.add(function)
        return kernel

    def _forget(self) -> None:
        while self._found:
            delattr(self, self._found.pop())


@contextmanager
def recording() -> Iterator[set[Call]]:
    """Collects the calls of all kernels while the block runs, which all go through Numba.

    For a process without other work at the time.
    """
    for kernels in Kernels._all:
        kernels._forget()
    Kernels._calls = calls = set[Call]()
    try:
        yield calls
    finally:
        Kernels._calls = None
