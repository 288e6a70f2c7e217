"""Pictures of one measurement: where a proof's time goes, and the memory of processes over time.

Those of many rows are in :mod:`gpuprover.bench.pictures`, whose style and colours these share.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .pictures import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, SKY, STYLE, VERMILION, YELLOW

_PALETTE = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, YELLOW, INK, GREY)
_SMALL = 0.0005
"""Seconds below which a phase has no bar."""


def _pyplot() -> Any:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    return mpl, pyplot


def draw_profile(record: Mapping[str, Any], path: str | Path) -> None:
    """Bars of phases, first proof and next, from the answer of ``gpuprover profile``; PNG or SVG by the name.

    Raises:
        ImportError: matplotlib is not installed.
    """
    mpl, pyplot = _pyplot()
    phases = {name: both for name, both in record["phases"].items() if max(both) >= _SMALL}
    with mpl.rc_context(STYLE):
        canvas, axes = pyplot.subplots(figsize=(8.5, 0.42 * len(phases) + 1.7), layout="constrained")
        rows = range(len(phases))
        first, after = ([both[i] for both in phases.values()] for i in (0, 1))
        axes.barh([i - 0.2 for i in rows], first, height=0.36, color=SKY, hatch="//", edgecolor="white",
                  label=f"first proof: {record['first']['seconds']:.3g} s")  # fmt: skip
        axes.barh([i + 0.2 for i in rows], after, height=0.36, color=BLUE,
                  label=f"those after it: {record['next']:.3g} s")  # fmt: skip
        axes.set_yticks(list(rows), list(phases))
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("seconds")
        threads = record["threads"]
        axes.set_title(
            f"{Path(record['zkey']).name}: {record['constraints']:,} constraints on {record['device']}, "
            f"{threads} thread{'s' * (threads != 1)}"
        )
        axes.legend(loc="best")
        canvas.savefig(path, metadata={"Date": None} if str(path).endswith(".svg") else {"Software": None})
        pyplot.close(canvas)
