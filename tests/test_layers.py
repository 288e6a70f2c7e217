"""Imports point down only, as the table in ARCHITECTURE.md says; and importing the package is cheap."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import gpuprover
from gpuprover.version import VERSION
from tests.support.paths import ROOT

PACKAGE = ROOT / "gpuprover"
FACADE = "gpuprover"
_MODULE = re.compile(r"gpuprover(\.\w+)+(:\w+)?")
BACKENDS = {"cpu", "cuda", "naive"}
HEAVY = {"numba", "llvmlite", "numpy", "wasmtime", "rich", "cupy", "fastapi", "matplotlib"}


def layers() -> dict[str, int]:
    """Module or package -> height, from the table."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    table = text[text.index("| layer | modules |") :].split("\n\n")[0]
    rows = [re.findall(r"`(\w+)`", line.split("|")[2]) for line in table.splitlines()[2:]]
    return {module: -i for i, row in enumerate(rows) for module in row}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def component(dotted: str) -> str:
    """``gpuprover.cpu.msm`` -> ``cpu``; the package's own name for what it exports itself."""
    parts = dotted.split(".")
    if len(parts) > 1 and ((PACKAGE / parts[1]).is_dir() or (PACKAGE / f"{parts[1]}.py").exists()):
        return parts[1]
    return FACADE


def imports(path: Path) -> Iterator[tuple[str, int, bool]]:
    """(module, line, whether at the top level) of every import of a file; by name, too."""
    text = path.read_text()
    tree, by_name = ast.parse(text), "import_module" in text
    top = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno, id(node) in top
        elif by_name and isinstance(node, ast.Constant) and _MODULE.fullmatch(str(node.value)):
            yield str(node.value).partition(":")[0], node.lineno, False
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: imports are absolute"
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node.lineno, id(node) in top


def of(path: Path) -> str:
    return component(".".join(("gpuprover", *path.relative_to(PACKAGE).with_suffix("").parts)))


def test_every_module_has_a_layer() -> None:
    assert {of(path) for path in modules() if path.name != "__init__.py" or path.parent != PACKAGE} | {
        FACADE
    } == set(layers())


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    height = layers()
    here = FACADE if path == PACKAGE / "__init__.py" else of(path)
    for name, line, _ in imports(path):
        if name.split(".")[0] != "gpuprover":
            continue
        there = component(name)
        where = f"{path.relative_to(ROOT)}:{line}: {name}"
        assert there == here or height[there] < height[here], f"{where}: imports point down only"
        assert there not in BACKENDS or there == here or here in ("cli", "devices"), (
            f"{where}: use the registry"
        )
        named = name.startswith("gpuprover.systems.") and name.split(".")[2] != "system"
        assert not named or here == "systems", f"{where}: proof systems are known by their records"
        assert here != "reference" or there == "curves", f"{where}: the reference imports only curves"


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_heavy_packages_are_imported_late(path: Path) -> None:
    own = {"cpu": {"numba", "llvmlite"}, "service": {"fastapi"}}
    allowed = {"numpy"} | own.get(of(path), set())
    for name, line, at_top in imports(path):
        package = name.split(".")[0]
        assert not at_top or package not in HEAVY - allowed, f"{path.relative_to(ROOT)}:{line}: {name}"


def test_compiled_code_depends_on_what_its_cache_is_named_by() -> None:
    """Kernels import no module that :func:`gpuprover.cpu.sources.source_digest` leaves out.

    But for what names their files and keeps them, no part of which is compiled.
    """
    covered = (
        "gpuprover.cpu.kernels",
        "gpuprover.cpu.layout.",
        "gpuprover.curves.",
        "gpuprover.cpu.sources.",
        "gpuprover.cpu.kept.",
    )
    for path in sorted((PACKAGE / "cpu" / "kernels").glob("*.py")):
        for name, line, _ in imports(path):
            assert not name.startswith("gpuprover.") or name.startswith(covered), (
                f"{path.name}:{line}: {name}"
            )


WHOLE = {"PointMath", "Backend", "Executor"}
"""The contracts of which ARCHITECTURE.md shows every method."""


def members(body: list[ast.stmt]) -> dict[str, str | None]:
    """Public names of a class: the arguments of a method, None for an attribute or a property."""
    found: dict[str, str | None] = {}
    for node in body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found[node.target.id] = None
        elif isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            arguments = node.args.args[1:] + node.args.kwonlyargs
            names = [argument.arg for argument in arguments]
            if node.args.vararg is not None:
                names.append(f"*{node.args.vararg.arg}")
            found[node.name] = None if node.decorator_list else ", ".join(names)
    return found


def contracts() -> dict[str, tuple[str, dict[str, str | None]]]:
    """Class -> (file, members) from the snippets of ARCHITECTURE.md, methods named in comments included."""
    found = {}
    text = (ROOT / "ARCHITECTURE.md").read_text()
    for file, snippet in re.findall(r"```python\n# (\S+)\n(.*?)```", text, re.DOTALL):
        classes = ast.parse(snippet).body
        ends = [node.lineno - 1 for node in classes[1:]] + [len(snippet.splitlines())]
        for node, end in zip(classes, ends, strict=True):
            assert isinstance(node, ast.ClassDef)
            source = "\n".join(snippet.splitlines()[node.lineno : end])
            comments = "\n".join(re.findall(r"^    # (.*)", source, re.MULTILINE))
            briefly = dict(re.findall(r"(\w+)\(([^)]*)\)", comments))
            found[node.name] = file, members(node.body) | briefly
    return found


def test_the_contracts_in_the_text_are_those_of_the_code() -> None:
    shown = contracts()
    assert set(shown) == WHOLE | {"ProofSystem"}
    for name, (file, said) in shown.items():
        tree = ast.parse((ROOT / file).read_text())
        (node,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
        true = members(node.body)
        assert said == {member: true.get(member, "not there") for member in said}, name
        methods = {member for member, arguments in true.items() if arguments is not None}
        assert name not in WHOLE or methods <= set(said), name


def test_files_that_pages_name_are_there() -> None:
    """Paths of our own sources in backticks, in the pages for those who change the code."""
    for page in "ARCHITECTURE.md", "CONTRIBUTING.md", "bench/README.md", "bench/gpu/README.md":
        text = re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.DOTALL)
        named = re.findall(r"`((?:\w+/)*\w+\.(?:py|cuh?|toml))`", text)
        assert named
        for path in named:
            folders = PACKAGE, ROOT, ROOT / "bench", ROOT / page.rpartition("/")[0]
            assert any((folder / path).is_file() for folder in folders), f"{page}: {path}"


def test_private_names_stay_where_they_are() -> None:
    for path in modules():
        for name, line, _ in imports(path):
            own = name.rpartition(".")[2]
            private = name.startswith("gpuprover.") and own.startswith("_") and not own.endswith("__")
            assert not private, f"{path.relative_to(ROOT)}:{line}: {name}"


def test_what_kernels_and_drivers_agree_on_imports_no_kernel() -> None:
    for name, line, _ in imports(PACKAGE / "cpu" / "layout.py"):
        assert not name.startswith("gpuprover.cpu"), f"layout.py:{line}: {name}"


def test_kernels_are_called_through_one_place() -> None:
    """Else a process on an image would import Numba."""
    for path in sorted((PACKAGE / "cpu").glob("*.py")):
        for name, line, at_top in imports(path):
            compilers = name.startswith(("numba", "llvmlite", "gpuprover.cpu.kernels"))
            apart = path.name in ("bake.py", "kept.py")  # imported by no driver
            assert not (compilers and at_top) or apart, f"{path.name}:{line}: {name}"


def test_a_checkout_gives_the_package_two_folders_and_nothing_else() -> None:
    """Also one that is not installed: ``-S`` leaves site-packages out, and with them an editable install."""
    program = f"""
import importlib.util, sys
sys.path.insert(0, {str(ROOT)!r})
names = ("bench", "bench.gpu", "kernels", "tests", "docs", "deploy", "examples", "nothing")
print(*(name for name in names if importlib.util.find_spec("gpuprover." + name)))
"""
    for options in ("-c",), ("-S", "-c"):
        command = [sys.executable, *options, program]
        found = subprocess.run(command, capture_output=True, check=True, cwd=ROOT, text=True).stdout.split()
        assert found == ["bench", "bench.gpu", "kernels"]


def test_the_version_is_the_project_file_s() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert gpuprover.__version__ == VERSION == project["version"]


def test_importing_the_package_is_cheap() -> None:
    program = (
        "import time, sys, json; t = time.process_time(); import gpuprover; "
        "print(json.dumps([time.process_time() - t, sorted(sys.modules)]))"
    )
    runs = [
        json.loads(
            subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, cwd=ROOT).stdout
        )
        for _ in range(3)
    ]
    assert min(seconds for seconds, _ in runs) < 0.3
    assert not HEAVY & {name.split(".")[0] for name in runs[0][1]}
