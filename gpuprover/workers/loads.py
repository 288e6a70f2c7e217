"""Loads of keys: a worker for each kind of device loads and plans, and what they say is one ``KeyInfo``."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Generic, TypeVar

from gpuprover.errors import ProverError
from gpuprover.executor import KeyInfo, Loaded, Lost

LOAD_TRIES = 3
"""Workers that may die while they load a key before whoever asked for it is told."""

W = TypeVar("W")
"""A worker; compared by identity."""


@dataclass(eq=False)
class Load(Generic[W]):
    """A key to load.

    Attributes:
        asked: for each kind of device that has not answered, the worker that was asked, if there was one yet;
            None before there were devices.
        found: what workers have said of the key.
        problem: what the last worker said that could not load it.
        tries: workers that died of it, or meanwhile.
    """

    path: str
    pin: bool
    done: Loaded
    asked: dict[str, W | None] | None = None
    found: list[KeyInfo] = field(default_factory=list)
    problem: ProverError | Lost | None = None
    tries: int = 0


class Loads(Generic[W]):
    """The loads that have not ended. Not for several threads at once.

    Args:
        send: asks a worker: ``send(worker, number, path, pin)``; its answer comes to :meth:`answered`.
        ended: called with each load that has ended, and its outcome.
    """

    def __init__(
        self,
        send: Callable[[W, int, str, bool], None],
        ended: Callable[[Load[W], KeyInfo | ProverError | Lost], None],
    ) -> None:
        self._send, self._ended = send, ended
        self._loads: dict[int, Load[W]] = {}
        self._numbers = count(1)

    def __len__(self) -> int:
        return len(self._loads)

    def take(self, path: str, pin: bool, done: Loaded) -> None:
        """Takes a load; :meth:`ask` begins it."""
        self._loads[next(self._numbers)] = Load(path, pin, done)

    def ask(self, kinds: Collection[str], choose: Callable[[str], W | None]) -> None:
        """Asks a worker for each kind of device, where none was asked yet.

        Args:
            kinds: kinds of devices that can be used now; with none nothing is asked.
            choose: the worker to ask, by the kind of its device; None if there is none yet.
        """
        for number, load in list(self._loads.items()) if kinds else ():
            if load.asked is None:
                load.asked = dict.fromkeys(kinds)
            for kind in [kind for kind, worker in load.asked.items() if worker is None]:
                if kind not in kinds:
                    del load.asked[kind]
                    continue
                worker = choose(kind)
                if worker is not None:
                    load.asked[kind] = worker
                    self._send(worker, number, load.path, load.pin)
            if not load.asked:
                self._finish(number, load.problem)

    def answered(self, worker: W, number: int, answer: KeyInfo | ProverError) -> None:
        """Takes a worker's answer; one that nobody waits for any more is ignored."""
        load = self._loads.get(number)
        kind = None if load is None else self._kind(load, worker)
        if load is None or load.asked is None or kind is None:
            return
        del load.asked[kind]
        if isinstance(answer, KeyInfo):
            load.found.append(answer)
        else:
            load.problem = answer
        if not load.asked:
            self._finish(number, load.problem)

    def lost(self, worker: W, why: Lost) -> None:
        """Has other workers asked for what one loads that is gone."""
        for number, load in list(self._loads.items()):
            kind = self._kind(load, worker)
            if load.asked is not None and kind is not None:
                load.asked[kind], load.tries = None, load.tries + 1
                if load.tries >= LOAD_TRIES:
                    self._finish(number, why)

    def busy(self, worker: W) -> bool:
        """Whether a worker loads something."""
        return any(self._kind(load, worker) is not None for load in self._loads.values())

    def end(self, problem: ProverError | Lost) -> None:
        """Ends all of them; those of which something was found end well."""
        for number in list(self._loads):
            self._finish(number, problem)

    @staticmethod
    def _kind(load: Load[W], worker: W) -> str | None:
        """The kind of device for which a worker was asked."""
        return next((kind for kind, asked in (load.asked or {}).items() if asked is worker), None)

    def _finish(self, number: int, problem: ProverError | Lost | None) -> None:
        """The only end of a load."""
        load = self._loads.pop(number)
        outcome: KeyInfo | ProverError | Lost
        if load.found:
            plans = {kind: plans for info in load.found for kind, plans in info.plans.items()}
            outcome = replace(load.found[0], plans=plans)
        else:
            outcome = problem or Lost(f"{load.path}: no worker is left that could load it")
        self._ended(load, outcome)
