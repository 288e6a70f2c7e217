"""The wheel: what it holds, and that it proves where nothing of the repository is in reach."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from tests.support.paths import ROOT

FOLDERS = {"gpuprover": "gpuprover", "bench": "gpuprover/bench", "kernels": "gpuprover/kernels"}

PROGRAM = """
import importlib.resources, sys
import gpuprover
from gpuprover.circuits import poseidon_circuit

assert "site-packages" in gpuprover.__file__, gpuprover.__file__
assert importlib.resources.files("gpuprover.kernels").joinpath("README.md").is_file()
import gpuprover.bench
poseidon_circuit().write("c.r1cs", "c.wtns")
gpuprover.setup("c.r1cs", "c.zkey", insecure=True)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("build")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    # A copy of what is needed: setuptools leaves its traces in the folder it builds.
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (source / name).write_bytes((ROOT / name).read_bytes())
    for folder in FOLDERS:
        for path in files(folder):
            target = source / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / path).read_bytes())
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    if (
        done.returncode != 0
        and "Could not find a version that satisfies the requirement setuptools" in done.stdout
    ):
        pytest.skip("the package index that has the build backend cannot be reached")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return next(out.glob("*.whl"))


def files(folder: str) -> list[str]:
    """The repository's files of one folder, relative to the root."""
    return [
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]


def test_every_file_is_in_the_wheel(wheel: Path) -> None:
    """Packages are listed in pyproject.toml: a forgotten one shows here."""
    inside = set(zipfile.ZipFile(wheel).namelist())
    for folder, place in FOLDERS.items():
        wanted = {place + path.removeprefix(folder) for path in files(folder)}
        assert wanted <= inside, f"missing: {sorted(wanted - inside)}"
    assert not any(name.startswith(("tests/", "bench/", "kernels/")) for name in inside)


def prove_with(wheel: Path, tmp_path: Path, *options: str, dependencies: str = "") -> None:
    """Installs the wheel into a new environment and proves with it in another folder."""
    venv.create(tmp_path / "env", with_pip=False)
    binaries = tmp_path / "env" / "bin"
    if dependencies:
        site = next((tmp_path / "env").glob("lib/python3*/site-packages"))
        (site / "dependencies.pth").write_text(dependencies)
    work = tmp_path / "elsewhere"
    work.mkdir()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}

    def run(*command: str | Path) -> None:
        done = subprocess.run(
            command, cwd=work, env=environment, capture_output=True, text=True, timeout=250, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr

    pip = (sys.executable, "-m", "pip", "--quiet", "--python", binaries / "python", "install")
    run(*pip, "--disable-pip-version-check", *options, wheel)
    run(binaries / "python", "-c", PROGRAM)
    run(binaries / "gpuprover", "prove", "c.zkey", "c.wtns", "proof.json", "public.json")
    run(binaries / "gpuprover", "zkey", "export", "verificationkey", "c.zkey", "vkey.json")
    run(binaries / "gpuprover", "verify", "vkey.json", "public.json", "proof.json")


def test_proves_outside_the_repository(wheel: Path, tmp_path: Path) -> None:
    """With this environment's dependencies; its editable install is a .pth file, which is not followed."""
    folders = [p for p in sys.path if Path(p).name == "site-packages"]
    prove_with(wheel, tmp_path, "--no-deps", dependencies="\n".join(folders))


@pytest.mark.slow
def test_proves_with_the_dependencies_it_declares(wheel: Path, tmp_path: Path) -> None:
    prove_with(wheel, tmp_path)
