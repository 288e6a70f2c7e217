"""SECURITY.md: every test that it names is there."""

from __future__ import annotations

import re

from tests.support.paths import ROOT, TESTS


def test_the_tests_that_show_a_promise_are_there() -> None:
    page = (ROOT / "SECURITY.md").read_text()
    functions = {
        name for path in TESTS.rglob("test_*.py") for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    named = re.findall(r"`(?:tests/)?((?:\w+/)*)(test_\w+)(\.py|…)?`", page)
    assert len(named) > 30
    for folder, name, end in named:
        if end == ".py":
            assert (TESTS / folder / f"{name}.py").is_file(), name
        else:
            assert [f for f in functions if f == name or (end and f.startswith(name))], name
    for folder in re.findall(r"`tests/(\w+)`", page):
        assert (TESTS / folder).is_dir()
