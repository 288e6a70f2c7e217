"""What .ci/run relies on: GPUPROVER_REQUIRE turns skips for want of something into failures.

``GPUPROVER_REQUIRE=data,interop`` fails every test that skips with a reason naming
GPUPROVER_TEST_DATA, or naming the Node.js packages.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

REASONS = {"data": "GPUPROVER_TEST_DATA", "interop": "Node.js"}


def missing_requirement(reason: str) -> str | None:
    """The name in GPUPROVER_REQUIRE for whose want a test skipped, if any."""
    for name in filter(None, os.environ.get("GPUPROVER_REQUIRE", "").split(",")):
        if REASONS[name] in reason:
            return name
    return None


def refuse_skip(report: Any) -> None:
    if not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    name = missing_requirement(reason)
    if name is not None:
        report.outcome = "failed"
        report.longrepr = f"GPUPROVER_REQUIRE={name}, but: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    report = yield
    refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Iterator[None]:
    report = yield
    refuse_skip(report)
    return report
