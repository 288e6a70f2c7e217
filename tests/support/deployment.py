"""Reads deployment files, and runs the tools of tests/deploy/install.py: a warning counts as an error."""

from __future__ import annotations

import os
import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from tests.support.paths import ROOT

DEPLOY = ROOT / "deploy"
EXAMPLE = ROOT / "examples" / "docker-config"
METRICS_PAGE = ROOT / "docs" / "metrics.md"
ALERTS = DEPLOY / "prometheus" / "alerts.yaml"
DASHBOARD = DEPLOY / "grafana" / "dashboard.json"

Document = dict[str, Any]


class Refused(Exception):
    """A file that a tool or a schema refuses, or warns of."""


class UniqueKeys(yaml.SafeLoader):
    """PyYAML takes the last of equal keys; YAML allows none."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if len(keys) != len(set(keys)):
            raise Refused(f"{node.start_mark}: a key stands twice")
        return super().construct_mapping(node, deep)


def parse(text: str) -> list[Document]:
    return list(yaml.load_all(text, UniqueKeys))


def tool(name: str) -> Path:
    path = ROOT / ".tools" / "bin" / name
    if not path.exists():
        pytest.skip(f"the deployment tools are not installed: {name} (make setup)")
    return path


def run(name: str, *arguments: str | Path, **environment: str) -> str:
    """A tool's standard output.

    Raises:
        Refused: it failed, or had something to say.
    """
    clean = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", **environment}
    done = subprocess.run(
        [tool(name), *map(str, arguments)], capture_output=True, text=True, env=clean, timeout=60, check=False
    )
    if done.returncode or done.stderr.strip():
        raise Refused(done.stdout + done.stderr)
    return done.stdout


TARGET_LABELS = {"job", "instance", "namespace"}
"""Labels that Prometheus adds to every series."""
ROW = re.compile(r"^\| `(\w+)` \| (counter|gauge|histogram) \|([^|]*)\| ([^|]+) \|$", re.M)


class Metric(NamedTuple):
    kind: str
    labels: frozenset[str]
    help: str


@cache
def metrics() -> dict[str, Metric]:
    """By the names of their series: a histogram has three."""
    found: dict[str, Metric] = {}
    for name, kind, labels, text in ROW.findall(METRICS_PAGE.read_text()):
        metric = Metric(kind, frozenset(re.findall(r"`(\w+)`", labels)), text)
        if kind == "histogram":
            found |= {
                f"{name}_bucket": metric._replace(labels=metric.labels | {"le"}),
                f"{name}_sum": metric,
                f"{name}_count": metric,
            }
        else:
            found[name] = metric
    return found | {"up": Metric("gauge", frozenset(), "made by Prometheus")}


SELECTOR = re.compile(r"([a-zA-Z_:]\w*)(?:\{([^}]*)\})?")
KEYWORDS = {
    "and",
    "or",
    "unless",
    "by",
    "on",
    "without",
    "ignoring",
    "group_left",
    "group_right",
    "bool",
    "offset",
}
STRING = re.compile(r'"(?:[^"\\]|\\.)*"')


def check_query(query: str) -> set[str]:
    """The names of a query's series; every one, and every label, stands in docs/metrics.md."""
    text = STRING.sub('""', query)
    text = re.sub(r"\[[^\]]*\]", "", text)
    grouped = re.findall(r"\b(?:by|on|without|ignoring|group_left|group_right)\s*\(([^)]*)\)", text)
    text = re.sub(r"\b(?:by|on|without|ignoring|group_left|group_right)\s*\([^)]*\)", "", text)
    names = set()
    for match in SELECTOR.finditer(text):
        name, matchers = match.groups()
        if name in KEYWORDS or text[match.end() :].lstrip().startswith("("):
            continue
        if name not in metrics():
            raise Refused(f"{name} is not in docs/metrics.md: {query}")
        unknown = set(re.findall(r"(\w+)\s*[!=]", matchers or "")) - metrics()[name].labels - TARGET_LABELS
        if unknown:
            raise Refused(f"{name} has no label {sorted(unknown)}: {query}")
        names.add(name)
    allowed = TARGET_LABELS.union(*(metrics()[name].labels for name in names))
    unknown = {label.strip() for group in grouped for label in group.split(",")} - allowed
    if unknown or not names:
        raise Refused(f"no series has the labels {sorted(unknown)}: {query}")
    return names
