"""The examples run as their READMEs say, in a process of their own, and leave nothing behind."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.support.paths import ROOT

EXAMPLES = ROOT / "examples"


def test_a_pool_of_workers_loses_nothing_when_one_is_killed(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.mkdir()
    ran = subprocess.run(
        [sys.executable, EXAMPLES / "worker-pool" / "pool.py", keys],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=tmp_path,
    )
    assert ran.returncode == 0, ran.stderr
    said = ran.stdout.splitlines()
    assert re.fullmatch(r"killed worker \d+ with \d+ proofs to go", said[1])
    assert said[2].startswith("12 proofs after ")
    assert said[-1] == "all hold, each is another"
    # README shows what it prints, figures aside.
    shown = (EXAMPLES / "worker-pool" / "README.md").read_text().split("```")[1].strip().splitlines()
    assert [re.sub(r"[\d.]+", "N", line) for line in shown] == [re.sub(r"[\d.]+", "N", line) for line in said]
    victim = re.findall(r"\d+", said[1])[0]
    assert not Path("/proc", victim).exists()
