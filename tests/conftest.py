"""Fixtures that every test may use: curves, backends, randomness with a printed seed, data from outside."""

from __future__ import annotations

import os
import random
import secrets
import signal
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from gpuprover.backend import Backend
from gpuprover.cpu.path import cpu_path
from gpuprover.cuda import gpus
from gpuprover.cuda.probe import Survey
from gpuprover.curves import BLS12_381, BN254, PAIRING_CURVES, CurveParams, Group
from gpuprover.devices import _REGISTRY, open_backend
from gpuprover.errors import MAX_MESSAGE, DeviceError
from gpuprover.job import Job
from tests.support.emulator import EmulatedDevice
from tests.support.running import Ran, Run

# Set in the environment, so that the processes of pytest-xdist share it.
SEED = os.environ.setdefault("GPUPROVER_SEED", secrets.token_hex(8))

# A shell's background job ignores Ctrl-C, and so would every process that a test starts and interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header() -> str:
    return f"GPUPROVER_SEED={SEED}"


def pytest_configure(config: pytest.Config) -> None:
    # Proofs that are compared with each other need one blinding; test_unverified.py is about the warning.
    config.addinivalue_line("filterwarnings", "ignore::gpuprover.errors.InsecureBlindingWarning")


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> str:
    """This test's seed; pytest shows the line on failure, and GPUPROVER_SEED repeats the run."""
    print(f"GPUPROVER_SEED={SEED}")
    return f"{SEED} {request.node.nodeid}"


@pytest.fixture
def rng(seed: str) -> random.Random:
    return random.Random(seed)


@pytest.fixture(autouse=True)
def no_gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test finds does not depend on the machine's GPUs, but for those with the marker ``gpu``."""
    if request.node.get_closest_marker("gpu") is None:
        monkeypatch.setattr(gpus, "_survey", lambda: Survey(problem="hidden from the tests"))


@pytest.fixture(params=PAIRING_CURVES, ids=lambda c: c.name)
def curve(request: pytest.FixtureRequest) -> CurveParams:
    return request.param


@pytest.fixture(params=Group, ids=lambda g: g.name)
def group(request: pytest.FixtureRequest) -> Group:
    return request.param


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of keys, witnesses and proofs that other tools made."""
    folder = os.environ.get("GPUPROVER_TEST_DATA")
    if not folder:
        pytest.skip("GPUPROVER_TEST_DATA names no folder with other tools' files")
    path = Path(folder)
    if not path.is_dir():
        pytest.fail(f"GPUPROVER_TEST_DATA={folder} is not a folder")
    return path


@dataclass(frozen=True)
class Scale:
    """How large a backend's tests are; the reference takes 10 to 20 ms for one scalar multiplication."""

    points: int
    """Longest multi-scalar multiplication."""
    edge_points: int
    """Points in the tests that go through many kinds of scalars and points."""
    log_ntt: int
    """Largest transform that is compared with the definition."""
    log_large: int
    """Largest transform that is checked at a few places."""
    large: int
    """Points in the tests of blocks, shared inversions and threads."""
    busy: int
    """Points with which an operation takes longer than the tests of cancellation wait."""


_SCALES = {"reference": Scale(points=3, edge_points=3, log_ntt=6, log_large=8, large=20, busy=300)}
_SCALES["emulated"] = Scale(points=40, edge_points=8, log_ntt=6, log_large=9, large=200, busy=2000)
_COMPILED = Scale(points=1000, edge_points=80, log_ntt=11, log_large=15, large=20_011, busy=1 << 16)

OpenBackend = Callable[[Job], Backend]


PORTABLE = "portable"
"""In place of a backend's name: the CPU backend, forced to its portable path."""
EMULATED = "emulated"
"""In place of a backend's name: the CUDA backend on a device whose kernels run on the host."""


@pytest.fixture(params=[*_REGISTRY, PORTABLE, EMULATED, pytest.param("cuda", marks=pytest.mark.gpu)])
def backend_name(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param != PORTABLE:
        return request.param
    monkeypatch.setenv("PROVER_CPU_PATH", PORTABLE)
    return "cpu"


def is_left_out(backend_name: str | None, default_path: str, marks: set[str], threads: int) -> bool:
    """Whether a test would repeat on this backend what runs on another one.

    Args:
        backend_name: the fixture's value, or None for tests without it.
        default_path: the CPU backend's path in this process.
        marks: the test's markers, of which ``both_paths`` and ``on_host`` count.
        threads: threads of the host, which do nothing for a device.
    """
    if backend_name == PORTABLE:
        return default_path == PORTABLE or "both_paths" not in marks
    return backend_name in (EMULATED, "cuda") and (threads > 1 or "on_host" in marks)


def is_long(
    backend_name: str | None, marks: set[str], curve: CurveParams | None, group: Group | None
) -> bool:
    """Whether a test belongs to the slow ones for want of a compiled backend.

    tests/test_reference.py compares the reference with another implementation over both curves.
    """
    if backend_name == EMULATED:
        return "long_sums" in marks and (curve, group) != (BN254, Group.G1)
    return backend_name == "reference" and "long_in_integers" in marks and curve == BLS12_381


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Chooses by markers on which backends a test runs, and on which among the slow tests alone."""
    kept, left_out = [], []
    for item in items:
        params = getattr(getattr(item, "callspec", None), "params", {})
        name, marks = params.get("backend_name"), {mark.name for mark in item.iter_markers()}
        if name == EMULATED:
            item.add_marker(pytest.mark.kernels_offline)
        if is_long(name, marks, params.get("curve"), params.get("group")):
            item.add_marker(pytest.mark.slow)
        repeats = is_left_out(name, cpu_path().name, marks, params.get("threads", 1))
        (left_out if repeats else kept).append(item)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = kept


@pytest.fixture
def scale(backend_name: str) -> Scale:
    return _SCALES.get(backend_name, _COMPILED)


@pytest.fixture
def quick_sums(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Few buckets and small blocks: on the emulated device a barrier takes a microsecond a thread."""
    from gpuprover.cuda import msm_plan, residency

    def choose(*arguments: Any) -> msm_plan.MsmPlan:
        return replace(msm_plan.choose_plan(*arguments), tuning=replace(msm_plan.TUNING, block=32))

    monkeypatch.setattr(msm_plan, "MAX_WINDOW", 4)
    monkeypatch.setattr(residency, "choose_plan", choose)
    residency._choose.cache_clear()
    yield
    residency._choose.cache_clear()


@pytest.fixture
def opened(backend_name: str, curve: CurveParams, request: pytest.FixtureRequest) -> OpenBackend:
    """Opens the backend under test for ``curve`` with a given job."""
    if backend_name == EMULATED:
        from gpuprover.cuda.residency import Residency
        from tests.support.cuda_proofs import backend_on

        request.getfixturevalue("quick_sums")

        gpu = Residency(EmulatedDevice(EMULATED))
        return lambda job: backend_on(gpu, curve, job)
    try:
        open_backend(backend_name, curve, Job())
    except DeviceError as error:
        pytest.skip(f"{backend_name}: {error.message}")
    return lambda job: open_backend(backend_name, curve, job)


@pytest.fixture
def backend(opened: OpenBackend) -> Backend:
    """Every registered backend × every curve, with two threads."""
    return opened(Job(threads=2))


# GPUPROVER_REQUIRE=data,interop,nvrtc,deploy fails every test that skips for want of GPUPROVER_TEST_DATA, of
# the Node.js packages, of NVIDIA's compiler and disassembler, or of what checks deploy/. .ci/run relies on
# that; make gpu adds the GPU.
REASONS = {
    "data": "GPUPROVER_TEST_DATA",
    "interop": "Node.js",
    "nvrtc": "nvidia-cuda",
    "deploy": "deployment tools",
    "chromium": "chromium is not installed",
    "gpu": "device 'cuda' is not available",
}


def missing_requirement(reason: str) -> str | None:
    """The name in GPUPROVER_REQUIRE for whose want a test skipped, if any."""
    for name in filter(None, os.environ.get("GPUPROVER_REQUIRE", "").split(",")):
        if REASONS[name] in reason:
            return name
    return None


def refuse_skip(report: Any) -> None:
    if not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    name = missing_requirement(reason)
    if name is not None:
        report.outcome = "failed"
        report.longrepr = f"GPUPROVER_REQUIRE={name}, but: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, Any, Any]:
    report = yield
    refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, Any, Any]:
    report = yield
    refuse_skip(report)
    return report


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process; its messages are short lines, never a traceback."""
    from gpuprover.cli import main

    def run(*arguments: object) -> Ran:
        code = main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        assert all(len(line) <= MAX_MESSAGE for line in err.splitlines() if not line.startswith("{"))
        return Ran(code, out, err)

    return run
