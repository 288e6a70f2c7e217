"""schemathesis asks the service what its OpenAPI document allows, and what it does not."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support.service_stage import stage

CONFIG = """
# Data of the right shape may still be no witness, no proof, too slow or too much.
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "400", "404", "409", "415", "422", "429", "504"]

[checks.not_a_server_error]
expected-statuses = ["2xx", "4xx", "503", "504"]
"""


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [False, True], ids=["open", "tokens"])
def test_answers_are_as_documented(tmp_path: Path, tokens: bool) -> None:
    if find_spec("schemathesis") is None:
        pytest.skip("schemathesis is not installed: pip install 'gpuprover[full]'")
    token = "a-token-of-24-characters"
    (tmp_path / "tokens").write_text(token if tokens else "")
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    settings = {"rapidsnark": True, "tokens_file": tmp_path / "tokens"}
    with stage(tmp_path / "c", settings=settings) as found:
        ran = subprocess.run(
            [
                *(sys.executable, "-m", "schemathesis.cli"),
                *("--config-file", str(tmp_path / "schemathesis.toml")),
                *("run", f"{found.url}/openapi.json", "--checks", "all", "--max-examples", "60"),
                *("--phases", "examples,coverage,fuzzing,stateful", "--request-timeout", "30", "--no-color"),
                *("--header", f"Authorization: Bearer {token}"),
            ],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            timeout=280,
        )
    assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-1000:]
    tested = re.search(r"Tested: (\d+)", ran.stdout)
    assert tested is not None
    assert int(tested[1]) == 18
