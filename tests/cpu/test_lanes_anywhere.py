"""The eight lanes' code on a CPU without AVX-512 IFMA: its suites, with multiplications written out."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from gpuprover.cpu.path import EMULATION, cpu_path
from tests.support.paths import ROOT

SUITES = tuple(
    f"tests/{name}.py"
    for name in ("cpu/test_ntt_lanes", "cpu/test_pairing", "test_changing_data", "cpu/test_stopping")
)
SELECTION = "cpu and not cuda and not large and not every_kind"


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.skipif(cpu_path().name == "ifma", reason="the CPU has AVX-512 IFMA: the suites run on it anyway")
@pytest.mark.parametrize(
    ("suites", "selection", "least"),
    [
        (SUITES, "", 40),
        (("tests/test_backend.py",), SELECTION, 100),
        (("tests/test_backend_columns.py",), "cpu", 80),
    ],
    ids=["own", "shared", "columns"],
)
def test_lanes_are_right_on_any_cpu(suites: tuple[str, ...], selection: str, least: int) -> None:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-n",
        "0",
        "-p",
        "no:cacheprovider",
        "-m",
        "not slow and not gpu",
    ]
    ran = subprocess.run(
        [*command, "--timeout", "1200", *suites, "-k", selection],
        env={**os.environ, EMULATION: "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-2000:]
    passed = re.search(r"(\d+) passed", ran.stdout)
    assert passed is not None
    assert int(passed[1]) > least
