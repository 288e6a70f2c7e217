"""The cache of compiled code: what one process saves, no other takes for something else."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

from gpuprover.cpu.kernels.jit import _DataFiles


def files(folder: Path) -> _DataFiles:
    return _DataFiles(str(folder), "kernel-1.py3", "stamp")


def save(folder: Path, curve: str, rounds: int) -> None:
    cache = files(folder)
    for i in range(rounds):
        cache.save((f"Field[{curve}, {i}]", "cpu"), f"code for {curve} {i}")


def test_processes_that_save_at_once(tmp_path: Path) -> None:
    """Every signature is there afterwards, and each has its own code."""
    context = multiprocessing.get_context("spawn")
    curves, rounds = ["a", "b", "c"], 40
    processes = [context.Process(target=save, args=(tmp_path, curve, rounds)) for curve in curves]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    cache = files(tmp_path)
    for curve in curves:
        for i in range(rounds):
            assert cache.load((f"Field[{curve}, {i}]", "cpu")) == f"code for {curve} {i}"
    assert cache.load(("Field[a, 0]", "another cpu")) is None


def test_a_damaged_name_is_not_believed(tmp_path: Path) -> None:
    """A file under another key's name, as after a collision, is not loaded; flushing removes all."""
    cache = files(tmp_path)
    cache.save("one", 1)
    (path,) = tmp_path.glob("*.nbc")
    path.rename(tmp_path / cache._file("two"))
    assert cache.load("two") is None
    cache.flush()
    assert not list(tmp_path.glob("*.nbc"))
