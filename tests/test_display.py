"""What each kind of stream shows of the same work."""

from __future__ import annotations

import io
import json
import time

from gpuprover.display import JSON_INTERVAL, LIVE_DELAY, Silent, display
from gpuprover.job import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def report(stream: io.StringIO, events: list[tuple[str, float, float]], **options: bool) -> list[str]:
    with display(stream, title="work", **options) as show:
        for event in events:
            show(Progress(*event))
    return stream.getvalue().splitlines()


def test_quiet_shows_nothing() -> None:
    assert isinstance(display(Terminal(), title="work", quiet=True), Silent)
    assert report(io.StringIO(), [("a", 0.0, 0.0), ("a", 1.0, 99.0)], quiet=True) == []


def test_json_lines_hold_every_edge_and_few_between() -> None:
    between = [("a", i / 1000, i * JSON_INTERVAL / 50) for i in range(1, 500)]
    events = [("a", 0.0, 0.0), *between, ("a", 1.0, 1.0), ("b", 0.0, 1.0), ("b", 1.0, 1.001)]
    lines = [json.loads(line) for line in report(io.StringIO(), events, as_json=True)]
    assert all(set(line) == {"phase", "fraction", "elapsed"} for line in lines)
    edges = [(line["phase"], line["fraction"]) for line in lines if line["fraction"] in (0.0, 1.0)]
    assert edges == [("a", 0.0), ("a", 1.0), ("b", 0.0), ("b", 1.0)]
    assert 4 < len(lines) <= 4 + 11


def test_plain_lines_are_silent_for_quick_work() -> None:
    assert report(io.StringIO(), [("a", 0.0, 0.0), ("a", 1.0, 0.5), ("b", 0.0, 0.5), ("b", 1.0, 1.9)]) == []


def test_plain_lines_tell_of_long_phases() -> None:
    events = [
        ("read", 0.0, 0.0),
        ("read", 1.0, 3.0),
        ("msm", 0.0, 3.0),
        ("msm", 0.5, 14.0),
        ("msm", 1.0, 20.0),
    ]
    assert report(io.StringIO(), events) == [
        "read: done in 3.0 s",
        "msm: 50 % after 11 s",
        "msm: done in 17.0 s",
    ]


def test_a_stream_that_fails_ends_the_reports_only() -> None:
    stream = io.StringIO()
    show = display(stream, title="work", as_json=True)
    stream.close()
    show(Progress("a", 0.0, 0.0))


def test_the_live_display_appears_late_and_goes_away() -> None:
    quick = Terminal()
    with display(quick, title="work") as show:
        show(Progress("a", 0.0, 0.0))
        show(Progress("a", 1.0, 0.01))
    assert quick.getvalue() == ""

    slow = Terminal()
    with display(slow, title="work") as show:
        show(Progress("first phase", 0.5, 0.0))
        deadline = time.monotonic() + 20
        while "first phase" not in slow.getvalue() and time.monotonic() < deadline:
            time.sleep(LIVE_DELAY / 4)
        show(Progress("second phase", 0.0, 1.0))
    shown = slow.getvalue()
    assert "first phase" in shown
    assert "second phase" in shown
    assert "✓" in shown, "the first phase has ended"
    assert "\x1b[2K" in shown.split("second phase")[-1], "the display is erased at the end"
