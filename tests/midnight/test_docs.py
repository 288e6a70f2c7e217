"""docs/midnight.md does what it says: its commands and its Python, in a copy of the vectors."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from tests.support.paths import ROOT, VECTORS
from tests.support.running import Run

PAGE = (ROOT / "docs" / "midnight.md").read_text()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    copied = tmp_path / "midnight"
    shutil.copytree(VECTORS / "midnight", copied)
    monkeypatch.chdir(copied)
    monkeypatch.setenv("MIDNIGHT_PP", str(copied))
    return copied


def test_the_commands_run_as_they_stand_there(folder: Path, run: Run) -> None:
    said = []
    for line in "".join(re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)).splitlines():
        words = shlex.split(line, comments=True)
        if words[0] == "gpuprover":
            ran = run(*words[1:])
            assert ran.code == 0, (line, ran.err)
            said += ran.out.splitlines()
        elif words[0] == "cmp":
            assert Path(words[1]).read_bytes() == Path(words[2]).read_bytes()
        else:
            assert line.startswith("export MIDNIGHT_PP=$PWD "), "the folder that this test sets"
    assert said.count("OK") == 3
    assert "8" in said


def test_the_python_runs_as_it_stands_there(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Processes have their test in test_engine.py.
    monkeypatch.setenv("PROVER_MAX_WORKERS", "0")
    monkeypatch.setenv("PROVER_VERIFIER", "inline")
    (program,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(compile(program, "docs/midnight.md", "exec"), {})
    assert capsys.readouterr().out == "Expected 1 inputs, received 0\n"
