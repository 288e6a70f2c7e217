"""What is installed beside this package: floors without known advisories, and the images' locks."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.support.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCKS = {
    "server": ROOT / "deploy" / "locks" / "server.txt",
    "cuda13-server": ROOT / "deploy" / "locks" / "cuda13-server.txt",
    "build": ROOT / "deploy" / "locks" / "build.txt",
}

FIRST_GOOD = {
    # A WebAssembly program out of its sandbox: CVE-2026-24116, CVE-2026-34971, GHSA-mghf-wjfp-p5xm. The fixes
    # of older branches (36.0.19, 48.0.7, 49.0.4) were never made packages for Python.
    "wasmtime": "50.0.1",
    "h11": "0.16",  # CVE-2025-43859, requests smuggled behind a proxy
    "starlette": "1.3.1",  # CVE-2025-62727, CVE-2026-48710
}


def required(*extras: str) -> dict[str, Requirement]:
    """What pyproject.toml asks for, with these extras, by canonical name."""
    texts = list(PROJECT["dependencies"])
    for extra in extras:
        texts += PROJECT["optional-dependencies"][extra]
    return {canonicalize_name(r.name): r for r in map(Requirement, texts)}


def locked(name: str) -> list[tuple[str, str, list[str]]]:
    """(package, version, hashes) of each entry of a lock."""
    text = LOCKS[name].read_text().replace("\\\n", " ")
    entries = []
    for line in filter(None, map(str.strip, text.splitlines())):
        match = re.fullmatch(r"([a-z0-9.-]+)==(\S+)( ; [^-]*?)?((?:\s+--hash=sha256:[0-9a-f]{64})+)", line)
        assert match, f"{LOCKS[name].name}: {line[:80]!r}, expected a version and its hashes"
        entries.append((canonicalize_name(match[1]), match[2], re.findall(r"sha256:\w+", match[4])))
    return entries


@pytest.mark.parametrize("name", FIRST_GOOD)
def test_no_version_with_a_known_hole_is_allowed(name: str) -> None:
    specifiers = required("server")[name].specifier
    floors = [Version(s.version) for s in specifiers if s.operator in (">=", "==", "~=")]
    assert floors, f"{name}: pyproject.toml sets no floor"
    assert max(floors) >= Version(FIRST_GOOD[name])


@pytest.mark.parametrize("lock", ["server", "cuda13-server"])
def test_a_lock_has_what_the_image_needs(lock: str) -> None:
    found = locked(lock)
    for name, requirement in required(*lock.split("-")).items():
        versions = [version for package, version, _ in found if package == name]
        assert versions, f"{lock}.txt has no {name}: run make lock"
        assert all(requirement.specifier.contains(version) for version in versions), (name, versions)


def test_the_build_of_an_image_needs_only_what_is_locked() -> None:
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    found = {package: version for package, version, _ in locked("build")}
    assert all(r.specifier.contains(found[canonicalize_name(r.name)]) for r in map(Requirement, wanted))


@pytest.mark.slow
@pytest.mark.parametrize("lock", LOCKS)
def test_no_advisory_is_known_for_what_the_images_install(lock: str) -> None:
    """Asks PyPI's advisory database, where the network allows."""
    if importlib.util.find_spec("pip_audit") is None:
        pytest.skip("pip-audit is not installed (pip install 'gpuprover[full]')")
    command = [sys.executable, "-m", "pip_audit", "--disable-pip", "--require-hashes", "--format", "json"]
    done = subprocess.run(
        [*command, "--progress-spinner", "off", "-r", str(LOCKS[lock])],
        capture_output=True,
        text=True,
        timeout=250,
    )
    if not done.stdout.strip():
        pytest.skip("the advisory database cannot be reached")
    packages = json.loads(done.stdout)["dependencies"]
    asked = [p for p in packages if "skip_reason" not in p]
    if not asked:
        pytest.skip("the advisory database cannot be reached: it knows none of these packages")
    assert len(asked) == len(packages), [p for p in packages if "skip_reason" in p]
    assert not [(p["name"], p["version"], v["id"]) for p in asked for v in p["vulns"]]
