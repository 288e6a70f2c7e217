"""docs/midnight.md does what it says: its commands and its Python, in a copy of the vectors."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT, VECTORS

PAGE = ROOT / "docs" / "midnight.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copied = tmp_path_factory.mktemp("docs") / "midnight"
    shutil.copytree(VECTORS / "midnight", copied)
    program = copied / "bin" / "gpuprover"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m gpuprover "$@"\n')
    program.chmod(0o755)
    return copied


def ran(folder: Path, *command: str) -> str:
    environment = {
        **os.environ,
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "MIDNIGHT_PP": str(folder),
    }
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=folder, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_commands_run_as_they_stand_there(folder: Path) -> None:
    script = "\n".join(re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL))
    said = ran(folder, "sh", "-ec", script)
    assert said.count("OK") >= 3
    assert "INVALID" not in said


def test_the_python_runs_as_it_stands_there(folder: Path) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert "instruction" in ran(folder, sys.executable, "-c", program)
