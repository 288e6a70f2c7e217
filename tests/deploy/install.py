"""Installs what the tests of deploy/ check with (kustomize, promtool, docker-compose) into .tools/.

Unpacks Debian's packages of these names with apt's own tools, which needs no root and installs nothing into
the system: the same versions everywhere. Where apt knows no Debian it takes those that the machine has, if it
has all of them. Exits with 1 and one line on stderr if they cannot be had.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

TARGET = Path(__file__).resolve().parents[2] / ".tools"
TOOLS = ("kustomize", "promtool", "docker-compose")
"""Programs, and the Debian packages that hold them in usr/bin."""
SUITE = "trixie"
"""The first release of Debian with all three; they need a C library from 2.34 on, and nothing else."""
KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"


def run(*command: str | Path, folder: Path | None = None) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise OSError(" ".join([f"{command[0]}:", *(done.stderr or done.stdout).split("\n")[:1]]))
    return done.stdout


def mirror() -> str:
    """Where this machine gets Debian from; known before its first ``apt-get update`` too."""
    lines = run(
        "apt-get", "indextargets", "--no-release-info", "--format", "$(REPO_URI)", "Created-By: Packages"
    )
    for address in lines.split():
        if address.rstrip("/").endswith("/debian"):
            return address
    raise OSError("apt knows no mirror of Debian")


def unpack(target: Path) -> None:
    """Puts the programs into ``target``. apt checks Debian's keys as ever; its lists are in our folder."""
    with tempfile.TemporaryDirectory() as text:
        work = Path(text)
        for folder in ("lists/partial", "cache/archives/partial", "root"):
            (work / folder).mkdir(parents=True)
        (work / "sources.list").write_text(f"deb [signed-by={KEYS}] {mirror()} {SUITE} main\n")
        options = {
            "Dir::Etc::SourceList": work / "sources.list",
            "Dir::Etc::SourceParts": "-",
            "Dir::State::Lists": work / "lists",
            "Dir::Cache": work / "cache",
            # Else root's apt changes to a user that cannot write into our folder.
            "APT::Sandbox::User": "root",
            "Acquire::Languages": "none",
            "Acquire::Retries": "2",
        }
        apt = [
            "apt-get",
            "-qq",
            *(word for item in options.items() for word in ("-o", f"{item[0]}={item[1]}")),
        ]
        run(*apt, "update")
        run(*apt, "download", *TOOLS, folder=work)
        for package in work.glob("*.deb"):
            run("dpkg-deb", "-x", package, work / "root")
        for name in TOOLS:
            shutil.copy(work / "root" / "usr" / "bin" / name, target / name)


def install() -> None:
    binaries = TARGET / "bin"
    shutil.rmtree(TARGET, ignore_errors=True)
    binaries.mkdir(parents=True)
    try:
        unpack(binaries)
    except (OSError, subprocess.TimeoutExpired):
        places = [shutil.which(name) for name in TOOLS]
        if None in places:
            raise
        for name, place in zip(TOOLS, places, strict=True):
            (binaries / name).symlink_to(str(place))


def main() -> int:
    try:
        install()
    except (OSError, subprocess.TimeoutExpired) as error:
        print(f"tools not installed, the tests that need them will be skipped: {error}", file=sys.stderr)
        return 1
    (TARGET / "installed").touch()
    return 0


if __name__ == "__main__":
    sys.exit(main())
