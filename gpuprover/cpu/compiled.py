"""How this package calls its kernels: from an image where one is in use, else through Numba.

A driver says ``_kernels = Kernels("pairing")`` and calls ``_kernels.miller_loop(F, …)``. What answers is
settled when a kernel is first called; Numba is imported by then and not before.

Kernels cannot raise. One that ends early says so by what it returns, which is looked at here for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, ClassVar

from gpuprover import forks
from gpuprover.cpu import image
from gpuprover.cpu.image import Kinds, described, kind_of
from gpuprover.cpu.layout import OUTSIDE, STOPPED
from gpuprover.errors import Cancelled

Kernel = Callable[..., Any]
Call = tuple[str, Kinds]
"""A kernel's name, ``module.function``, and the kinds of its arguments."""


def dispatcher(name: str) -> Any:
    """Numba's, of the kernel ``module.function``."""
    module, function = name.split(".")
    with forks.settled:
        found = getattr(import_module(f"gpuprover.cpu.kernels.{module}"), function)
        # A compiler that is cut in two by a fork never ends in the child.
        forks.settle(import_module("numba.core.compiler_lock").global_compiler_lock)
    return found


def _find(name: str) -> Kernel:
    forms = image.functions(name)
    if not forms:
        return _complete(dispatcher(name))

    def kernel(*arguments: Any) -> Any:
        kinds, flat = described(arguments)
        form = forms.get(kinds)
        return dispatcher(name)(*arguments) if form is None else form(flat)

    return _complete(kernel)


def _complete(kernel: Kernel) -> Kernel:
    """The kernel, with an exception for an end that was not its own.

    Raises:
        Cancelled: ``stop`` was set, so that the kernel did not do its work.
        IndexError: an index among its data lies outside of the array that it is for.
    """

    def checked(*arguments: Any) -> Any:
        result = kernel(*arguments)
        if type(result) is int and result < -1:
            if result == STOPPED:
                raise Cancelled("the run has been stopped")
            assert result == OUTSIDE
            raise IndexError("an index outside of its array")
        return result

    return checked


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

            return _complete(recorded)
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
