"""Circuits: which are loaded, and who waits for those that are not.

A key is loaded where proofs are made, and planned for on the devices that can be used then. A circuit whose
file has changed, or that was not planned for on a kind of device that is there now, is loaded again for
whoever asks for it next.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from gpuprover.engine.directory import CircuitFiles
from gpuprover.engine.records import Circuit, CircuitLoaded, Steps
from gpuprover.engine.timers import Timers
from gpuprover.errors import EXIT_RESOURCES, CircuitNotFound, ProofGenerationFailed, ProverError
from gpuprover.executor import Executor, KeyInfo, Lost
from gpuprover.formats.files import identity_of

LOAD_LOSSES = 3
"""Losses of a worker under one load after which whoever waits for it gets an error."""
RELOAD_SECONDS = 0.2
"""Seconds before a load that was lost is tried again; they double with each loss."""
PRELOAD_SECONDS = 5.0
"""Seconds after which a circuit to preload is tried again whose load failed for want of something."""


class Loading:
    """The circuits that somebody has asked for.

    Not for several threads at once: its owner has the lock, and what an executor reports comes through
    ``post``.

    Args:
        executor: where keys are loaded.
        check: called, in any thread, for a circuit that was loaded; raises if its files do not fit together.
        kinds: kinds of devices that can be used now.
        post: has a function called soon, under the owner's lock; for any thread.
        timers: the owner's timers.
        steps: counts losses, reloads and failures.
    """

    def __init__(
        self,
        executor: Executor,
        check: Callable[[CircuitFiles], object],
        kinds: Callable[[], frozenset[str]],
        post: Callable[[Callable[[], None]], None],
        timers: Timers,
        steps: Steps,
    ) -> None:
        self._executor, self._check, self._kinds = executor, check, kinds
        self._post, self._timers, self._steps = post, timers, steps
        self._circuits: dict[str, Circuit] = {}
        self._stopped = False

    # What the dispatcher asks ----------------------------------------------------------

    def circuit(self, files: CircuitFiles) -> Circuit:
        """The circuit of that name, which has these files now."""
        circuit = self._circuits.setdefault(files.name, Circuit(files.name, files))
        circuit.files = files
        return circuit

    def info(self, files: CircuitFiles) -> KeyInfo | None:
        """The ``KeyInfo`` of a circuit that is loaded and whose file has not changed."""
        circuit = self._circuits.get(files.name)
        known = circuit is not None and circuit.files == files and self._is_current(circuit)
        return circuit.info if circuit is not None and known else None

    def is_ready(self, circuit: Circuit) -> bool:
        """Whether it is loaded, its file has not changed, and it is planned for on every kind of device that
        can be used: one may have come back since it was loaded."""
        info = circuit.info
        planned = info is not None and self._kinds() <= circuit.kinds | info.plans.keys()
        return planned and self._is_current(circuit)

    def wait(self, circuit: Circuit, who: object, loaded: CircuitLoaded) -> None:
        """Has ``loaded`` called when the circuit's load has ended; begins that load, if it does not go on."""
        circuit.waiting[who] = loaded
        self._load(circuit)

    def leave(self, circuit: Circuit, who: object) -> None:
        """Has somebody wait no more, if he does; the load goes on."""
        circuit.waiting.pop(who, None)

    def load(self, files: CircuitFiles, pin: bool, loaded: CircuitLoaded) -> KeyInfo | None:
        """Loads a circuit that is not, and pins it.

        Returns:
            what is known of one that is loaded and needs nothing; else None, and ``loaded`` is called.
        """
        circuit = self.circuit(files)
        more = pin and not circuit.pinned
        circuit.pinned |= pin
        if circuit.info is not None and not more and self.is_ready(circuit):
            return circuit.info
        self.wait(circuit, object(), loaded)
        return None

    def preload(self, files: CircuitFiles) -> None:
        """Loads a circuit that is to stay loaded; what keeps it from that is tried again by itself."""
        circuit = self.circuit(files)
        circuit.pinned = circuit.preloaded = True
        self._load(circuit)

    def forget(self, name: str) -> str | None:
        """Takes a circuit for one that is not loaded -> the path to unload; None if it was not loaded."""
        circuit = self._circuits.get(name)
        if circuit is None or circuit.info is None:
            return None
        path, circuit.info, circuit.pinned = circuit.info.path, None, False
        return path

    def stop(self, error: ProverError) -> None:
        """Tells all who wait that it is over; a load that ends later is told to nobody."""
        self._stopped = True
        for circuit in self._circuits.values():
            self._answer(circuit, error)

    # What a status says ----------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """The number of jobs that wait for a load."""
        return sum(len(circuit.waiting) for circuit in self._circuits.values())

    @property
    def loaded(self) -> tuple[str, ...]:
        """Names of the circuits that are loaded, sorted."""
        return tuple(sorted(self.keys))

    @property
    def keys(self) -> dict[str, KeyInfo]:
        """What is known of the circuits that are loaded, by name."""
        return {name: circuit.info for name, circuit in self._circuits.items() if circuit.info is not None}

    @property
    def preloaded(self) -> bool:
        """Whether every circuit to preload was loaded once."""
        return all(circuit.generation > 0 for circuit in self._circuits.values() if circuit.preloaded)

    @property
    def problems(self) -> tuple[str, ...]:
        """Sentences about circuits whose load failed, and was not made good since; without paths."""
        circuits = self._circuits.values()
        return tuple(f"{circuit.name}: {circuit.problem.told}" for circuit in circuits if circuit.problem)

    @property
    def failures(self) -> tuple[ProverError, ...]:
        """Errors of circuits to preload."""
        circuits = self._circuits.values()
        return tuple(circuit.problem for circuit in circuits if circuit.preloaded and circuit.problem)

    # Loads -----------------------------------------------------------------------------

    @staticmethod
    def _is_current(circuit: Circuit) -> bool:
        info = circuit.info
        return info is not None and info.path == circuit.files.key and is_current(info)

    def _load(self, circuit: Circuit) -> None:
        if circuit.loading:
            return
        files, old = circuit.files, circuit.info
        if files.key is None:
            problem = CircuitNotFound(f"circuit {circuit.name!r} has no key", more=f"but {files.vkey}")
            self._ended(circuit, problem)
            return
        circuit.loading, circuit.info = True, None
        if old is not None and (old.path != files.key or not is_current(old)):
            self._steps.tell("reloads", "the file of the key has changed", circuit.name)
            if old.path != files.key:
                self._executor.unload(old.path)
        self._executor.load(files.key, circuit.pinned, partial(self._reported, circuit, files))

    def _reported(self, circuit: Circuit, files: CircuitFiles, outcome: KeyInfo | ProverError | Lost) -> None:
        """In any thread."""
        if isinstance(outcome, KeyInfo):
            try:
                self._check(files)
            except ProverError as error:
                outcome = error
        self._post(partial(self._ended, circuit, outcome))

    def _ended(self, circuit: Circuit, outcome: KeyInfo | ProverError | Lost) -> None:
        circuit.loading = False
        if self._stopped:
            return
        if isinstance(outcome, Lost):
            circuit.losses += 1
            self._steps.tell("losses", f"the key was being loaded: {outcome}", circuit.name)
            if circuit.losses < LOAD_LOSSES:
                self._timers.after(RELOAD_SECONDS * 2**circuit.losses, partial(self._load, circuit))
                return
            outcome = ProofGenerationFailed(
                f"circuit {circuit.name!r}: {LOAD_LOSSES} times what loaded its key died: {outcome}"
            )
        circuit.losses = 0
        if isinstance(outcome, KeyInfo):
            circuit.generation += 1
            circuit.info, circuit.kinds, circuit.problem = outcome, self._kinds(), None
        else:
            circuit.problem = outcome
            self._steps.tell("load_failures", outcome.message, circuit.name)
            if circuit.preloaded and outcome.exit_code == EXIT_RESOURCES:
                # Nothing is wrong with the file: without this it would be missing until a proof asks for it.
                self._timers.after(PRELOAD_SECONDS, partial(self._load, circuit))
        self._answer(circuit, outcome)

    @staticmethod
    def _answer(circuit: Circuit, outcome: KeyInfo | ProverError) -> None:
        waiting, circuit.waiting = circuit.waiting, {}
        for loaded in waiting.values():
            loaded(outcome)


def is_current(info: KeyInfo) -> bool:
    """Whether the key's file is the one that was planned with."""
    try:
        return identity_of(info.path) == info.identity
    except ProverError:
        return False
