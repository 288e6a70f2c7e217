"""Circuits: loads, those who wait for them, files that change, what a status says of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from gpuprover.engine.directory import CircuitFiles
from gpuprover.engine.loading import LOAD_LOSSES, PRELOAD_SECONDS, RELOAD_SECONDS, Loading, is_current
from gpuprover.engine.records import Steps
from gpuprover.engine.timers import Timers
from gpuprover.errors import (
    CircuitNotFound,
    DeviceError,
    MalformedFile,
    ProofGenerationFailed,
    ProverError,
    ShuttingDown,
)
from gpuprover.executor import KeyInfo, Lost
from tests.support.engine_stage import FakeExecutor

Answer = KeyInfo | ProverError


class Desk:
    """Loading over an executor that answers when a test says so."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.now, self.kinds = folder, 0.0, frozenset({"cpu"})
        self.executor = FakeExecutor()
        self.executor.prompt = False
        self.executor.start(lambda: None)
        self.posted: list[Callable[[], None]] = []
        self.refused: ProverError | None = None
        self.steps, self.timers = Steps(), Timers(lambda: self.now)
        self.loading = Loading(
            self.executor, self.check, lambda: self.kinds, self.posted.append, self.timers, self.steps
        )

    def check(self, files: CircuitFiles) -> None:
        if self.refused is not None:
            raise self.refused

    def files(self, name: str = "a") -> CircuitFiles:
        path = self.folder / f"{name}.zkey"
        if not path.exists():
            path.write_text(f"key {name}")
        return CircuitFiles(name, str(path), None, None)

    def answer(self, outcome: ProverError | Lost | None = None) -> None:
        self.executor.answer_load(outcome)
        while self.posted:
            self.posted.pop(0)()

    def load(self, name: str = "a", pin: bool = False) -> list[Answer]:
        """Where the answer will be; it is there if the circuit was loaded."""
        answers: list[Answer] = []
        info = self.loading.load(self.files(name), pin, answers.append)
        return answers if info is None else [info]

    def after(self, seconds: float) -> None:
        self.now += seconds
        self.timers.run_due()


def kinds(*lists: list[Answer]) -> list[str]:
    return [type(answer).__name__ for answers in lists for answer in answers]


def test_one_load_serves_all_who_wait(tmp_path: Path) -> None:
    desk, heard = Desk(tmp_path), list[str]()
    circuit = desk.loading.circuit(desk.files())
    assert not desk.loading.is_ready(circuit)
    for name in ("first", "second", "third"):
        desk.loading.wait(circuit, name, lambda _, name=name: heard.append(name))  # type: ignore[misc]
    desk.loading.leave(circuit, "second")
    desk.loading.leave(circuit, "nobody")
    assert (len(desk.executor.loads), desk.loading.waiting) == (1, 2)
    desk.answer()
    assert heard == ["first", "third"]
    assert desk.loading.is_ready(circuit)
    assert (desk.loading.waiting, desk.loading.loaded) == (0, ("a",))
    assert desk.loading.info(desk.files()) is circuit.info is not None
    assert kinds(desk.load()) == ["KeyInfo"]
    assert not desk.executor.loads


def test_one_function_that_asks_twice_is_told_twice(tmp_path: Path) -> None:
    desk, answers = Desk(tmp_path), list[Answer]()
    for _ in range(2):
        assert desk.loading.load(desk.files(), False, answers.append) is None
    desk.answer()
    assert kinds(answers) == ["KeyInfo", "KeyInfo"]


def test_a_key_is_pinned_by_a_load_of_its_own(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.load()
    desk.answer()
    pinned = desk.load(pin=True)
    assert desk.executor.loads[0][1] is True
    desk.answer()
    assert kinds(pinned, desk.load(pin=True)) == ["KeyInfo", "KeyInfo"]
    path = desk.loading.forget("a")
    assert path == desk.files().key
    assert desk.loading.forget("a") is None
    assert desk.loading.loaded == ()
    desk.load()
    assert desk.executor.loads[0][1] is False, "who unloads a circuit does not want it to stay"


def test_a_key_that_is_loaded_again_is_another_circuit_to_the_scheduler(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    circuit = desk.loading.circuit(desk.files())
    desk.load()
    desk.answer()
    info, label = circuit.info, circuit.label
    assert info is not None
    new = tmp_path / "new"
    new.write_text("another key")
    os.replace(new, str(desk.files().key))
    assert not is_current(info)
    assert not desk.loading.is_ready(circuit)
    assert desk.loading.info(desk.files()) is None
    desk.load()
    desk.answer()
    assert circuit.label != label
    assert (desk.steps.counters["reloads"], desk.executor.unloaded) == (1, [])


def test_a_file_at_another_path_lets_the_old_one_go(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.load()
    desk.answer()
    old = str(desk.files().key)
    other = tmp_path / "circuit.zkey"
    other.write_text("key")
    circuit = desk.loading.circuit(CircuitFiles("a", str(other), None, None))
    assert not desk.loading.is_ready(circuit)
    desk.loading.wait(circuit, "who", lambda _: None)
    assert (desk.executor.unloaded, desk.executor.loads[0][0]) == ([old], str(other))


def test_a_device_that_comes_back_is_planned_for(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    circuit = desk.loading.circuit(desk.files())
    desk.load()
    desk.answer()
    desk.kinds = frozenset({"cpu", "rocm"})
    assert not desk.loading.is_ready(circuit), "there is no plan for it"
    desk.load()
    desk.answer()
    assert desk.loading.is_ready(circuit), "there is none, and it was asked for"


def test_a_load_that_is_lost_is_tried_again_a_few_times(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    answers = desk.load()
    for i in range(1, LOAD_LOSSES):
        desk.answer(Lost("killed"))
        desk.after(RELOAD_SECONDS * 2**i * 0.99)
        assert not desk.executor.loads
        desk.after(RELOAD_SECONDS)
    assert not answers
    desk.answer(Lost("killed"))
    (error,) = answers
    assert isinstance(error, ProofGenerationFailed)
    assert error.message == "circuit 'a': 3 times what loaded its key died: killed"
    assert (desk.steps.counters["losses"], desk.steps.counters["load_failures"]) == (LOAD_LOSSES, 1)
    answers = desk.load()
    desk.answer(Lost("killed"))
    assert not answers, "an end makes a beginning: it is counted anew"


def test_files_that_do_not_belong_together_are_a_failed_load(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.refused = MalformedFile("a.vkey.json", "document", "it is not the verification key")
    answers = desk.load()
    desk.answer()
    assert answers == [desk.refused]
    assert (desk.loading.loaded, desk.loading.failures) == ((), ())
    assert desk.loading.problems == ("a: a file: document: it is not the verification key",)
    desk.refused = None
    desk.load()
    desk.answer()
    assert (desk.loading.loaded, desk.loading.problems) == (("a",), ())


def test_a_circuit_without_a_key(tmp_path: Path) -> None:
    answers: list[Answer] = []
    desk = Desk(tmp_path)
    assert desk.loading.load(CircuitFiles("v", None, None, "v.vkey.json"), False, answers.append) is None
    assert kinds(answers) == [CircuitNotFound.__name__]
    assert not desk.executor.loads


def test_what_is_to_be_preloaded_is_tried_again_unless_its_file_is_at_fault(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    assert desk.loading.preloaded
    for name in "ab":
        desk.loading.preload(desk.files(name))
    assert [pin for _, pin, _ in desk.executor.loads] == [True, True]
    desk.answer(DeviceError("no worker started"))
    desk.answer(MalformedFile("b", "header", "damaged"))
    assert not desk.loading.preloaded
    assert kinds(list(desk.loading.failures)) == ["DeviceError", "MalformedFile"]
    desk.after(PRELOAD_SECONDS)
    assert [path for path, _, _ in desk.executor.loads] == [desk.files("a").key]
    desk.answer()
    assert kinds(list(desk.loading.failures)) == ["MalformedFile"]


def test_after_a_stop_nobody_is_told_anything_twice(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    answers = desk.load()
    desk.loading.stop(ShuttingDown("closed"))
    desk.answer()
    assert kinds(answers) == ["ShuttingDown"]
    assert desk.loading.loaded == ()
