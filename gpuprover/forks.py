"""What a process that was forked from this one (``os.fork``) finds: nothing that waits for a thread it lacks.

Of the threads of a process its child has one, the one that forked. A lock that another held at that moment
is never released there, and what another was making is never ready. So whoever has a lock that outlives a
call, or waits for a thread, says here what is to be made anew in a child (:func:`in_child`). What cannot be
made anew has to be complete before there is a child (:data:`settled`, :func:`settle`).
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from types import MethodType
from typing import Any, TypeVar

Reset = TypeVar("Reset", bound=Callable[[], object])

settled = threading.RLock()
"""Held while something is done that a fork must not cut in two, such as an import: a fork waits for it."""

_generation = 0
_functions: list[Callable[[], object]] = []
_methods: dict[tuple[int, str], tuple[weakref.ref[Any], Callable[[Any], object]]] = {}
_waited: dict[int, AbstractContextManager[Any]] = {id(settled): settled}
_held = ExitStack()


def generation() -> int:
    """How many forks lie between the process that imported this and this one: another number in a child."""
    return _generation


def in_child(reset: Reset) -> Reset:
    """Calls ``reset()`` in every child, before anything else of this package runs there.

    A method does not keep its object alive, and is forgotten with it. Locks are best replaced by new ones:
    a ``with`` block that the forking thread is in still leaves the one that it has entered.
    """
    if isinstance(reset, MethodType):
        owner, key = reset.__self__, (id(reset.__self__), reset.__name__)
        methods = _methods  # the module may be gone before the object is

        def forget(_: object) -> None:
            methods.pop(key, None)

        methods[key] = weakref.ref(owner, forget), reset.__func__
    else:
        _functions.append(reset)
    return reset


def settle(lock: AbstractContextManager[Any]) -> None:
    """From now on a fork waits until it holds this lock, a reentrant one; parent and child release it."""
    _waited.setdefault(id(lock), lock)


def _before() -> None:
    for lock in list(_waited.values()):
        _held.enter_context(lock)


def _in_parent() -> None:
    # Once the first of them is free, another thread's fork may begin.
    _held.pop_all().close()


def _in_child() -> None:
    global _generation
    _generation += 1
    _held.pop_all().close()
    for reset in _functions:
        reset()
    for find, method in list(_methods.values()):
        owner = find()
        if owner is not None:
            method(owner)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
