"""The cache of compiled code: nothing is taken for something else, and nothing that somebody else wrote."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from pathlib import Path

import pytest

from gpuprover import folders
from gpuprover.cpu.kept import Files
from gpuprover.folders import CACHE_VARIABLE, Store


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setattr(folders, "_keys", {})
    return tmp_path


def files() -> Files:
    return Files(Store("code"), "kernel-1.py3")


def save(curve: str, rounds: int) -> None:
    kept = files()
    for i in range(rounds):
        kept.save((f"Field[{curve}, {i}]", "cpu"), f"code for {curve} {i}")


def test_processes_that_save_at_once(root: Path) -> None:
    """Every signature is there afterwards, and each has its own code; they agree on a key."""
    context = multiprocessing.get_context("spawn")
    curves, rounds = ["a", "b", "c"], 40
    processes = [context.Process(target=save, args=(curve, rounds)) for curve in curves]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    kept = files()
    for curve in curves:
        for i in range(rounds):
            assert kept.load((f"Field[{curve}, {i}]", "cpu")) == f"code for {curve} {i}"
    assert kept.load(("Field[a, 0]", "another cpu")) is None


def test_a_damaged_name_is_not_believed(root: Path) -> None:
    """A file under another key's name, as after a collision, is not loaded; flushing removes all."""
    kept = files()
    kept.save("one", 1)
    name = kept._file("two")
    Store("code").write_signed(name, pickle.dumps((repr("one"), 1)))
    assert kept.load("two") is None
    assert kept.load("one") == 1
    kept.flush()
    assert not list(root.rglob("*.nbc"))


class Planted:
    """A pickle that runs something."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.trace),)


def test_no_pickle_is_read_that_this_user_did_not_write(root: Path, tmp_path: Path) -> None:
    """As Numba would write it, under a key that somebody else has made up, with the MAC of another file."""
    trace, kept = tmp_path / "trace", files()
    evil = pickle.dumps((repr("one"), Planted(trace)))
    kept.save("other", 1)
    name = kept._file("one")
    path = root / "code" / name
    written = (root / "code" / kept._file("other")).read_bytes()
    for planted in (evil, Store("code")._mac(bytes(32), name, evil) + evil, written[:32] + evil, written):
        path.write_bytes(planted)
        path.chmod(0o600)
        assert kept.load("one") is None
    assert not trace.exists()
    Store("code").write_signed(name, evil)
    kept.load("one")
    assert trace.exists(), "the pickle does nothing, and the test shows nothing"
