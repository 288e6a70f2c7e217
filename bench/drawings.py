"""Pictures of one measurement: where a proof's time goes, and the memory of processes over time.

Those of many rows are in :mod:`gpuprover.bench.pictures`, whose style and colours these share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .load import MemoryPoint
from .pictures import BLUE, GREEN, GREY, INK, ORANGE, SKY, STYLE, format_time
from .processes import MAIN, OTHER, PROVER, VERIFIER, Sample
from .rows import Row

_ROLES = {MAIN: ORANGE, VERIFIER: GREEN, PROVER: BLUE, OTHER: GREY}
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


def draw_memory(
    samples: Sequence[Sample],
    events: Sequence[tuple[float, str, str]],
    title: str,
    path: Path,
    *,
    together: bool = False,
) -> None:
    """Memory over time, a panel for each node, its processes stacked by role; PNG.

    ``together``: the nodes ran side by side, and share the axis of time.

    Raises:
        ImportError: matplotlib is not installed.
    """
    mpl, pyplot = _pyplot()
    nodes = list(dict.fromkeys(sample.node for sample in samples))
    exact = all(sample.pss is not None for sample in samples)
    columns = len(nodes) if len(nodes) <= 3 else 2
    lines = -(-len(nodes) // columns)
    with mpl.rc_context(STYLE):
        canvas, grid = pyplot.subplots(
            lines, columns, figsize=(11.2, 2.7 * lines + 0.7), squeeze=False, sharey=True,
            sharex=together, layout="constrained",
        )  # fmt: skip
        for axes in grid.flat[len(nodes) :]:
            axes.set_visible(False)
        for i, node in enumerate(nodes):
            axes = grid.flat[i]
            times, series = _stacks([sample for sample in samples if sample.node == node])
            axes.stackplot(
                times, series.values(), colors=[_ROLES[role] for role in series], linewidth=0, step="post"
            )
            axes.set_title(node)
            for when, of, what in events:
                if of == node:
                    axes.axvline(when, color=INK, linewidth=0.8, linestyle=":")
                    axes.annotate(
                        what, (when, 1.0), xycoords=axes.get_xaxis_transform(), xytext=(-1, 0),
                        textcoords="offset points", rotation=90, fontsize=7, va="top", ha="right", color=INK,
                    )  # fmt: skip
            if i % columns == 0:
                axes.set_ylabel(f"{'PSS' if exact else 'RSS'}, MiB")
            if i // columns == lines - 1 or i + columns >= len(nodes):
                axes.set_xlabel("seconds")
                axes.tick_params(labelbottom=True)
        present = [role for role in _ROLES if any(sample.role == role for sample in samples)]
        handles = [mpl.patches.Patch(color=_ROLES[role], label=role) for role in present]
        canvas.legend(handles=handles, loc="outside upper right", ncols=len(handles))
        canvas.suptitle(title, x=0.01, ha="left", fontweight="bold")
        canvas.savefig(path, metadata={"Software": None})
        pyplot.close(canvas)


def draw_load(rows: Sequence[Row], points: Sequence[MemoryPoint], path: Path) -> bool:
    """Throughput and latency over clients, memory over proofs; PNG -> whether there was anything to draw.

    Raises:
        ImportError: matplotlib is not installed.
    """
    levels = sorted(
        (row for row in rows if row["operation"] == "service load" and "latency" in row),
        key=lambda row: int(row["clients"]),
    )
    if not levels and not points:
        return False
    mpl, pyplot = _pyplot()
    count = 2 * bool(levels) + bool(points)
    with mpl.rc_context(STYLE):
        canvas, grid = pyplot.subplots(
            1, count, figsize=(4.4 * count, 3.6), squeeze=False, layout="constrained"
        )  # fmt: skip
        panels = list(grid.flat)
        if levels:
            clients = [row["clients"] for row in levels]
            _over_clients(panels[0], clients, "proofs a second")
            panels[0].plot(clients, [row["throughput"] for row in levels], color=BLUE, marker="o")
            panels[0].set_ylim(0, 1.1 * max(row["throughput"] for row in levels) or 1)
            panels[0].set_title("Throughput")
            _over_clients(panels[1], clients, "from a request to its proof")
            for name, figure, colour, marker in (
                ("p99", "p99_s", ORANGE, "^"),
                ("p50", "median_s", BLUE, "o"),
            ):
                seconds = [row["latency"][figure] for row in levels]
                panels[1].plot(clients, seconds, color=colour, marker=marker, label=name)
            panels[1].set_yscale("log")
            panels[1].yaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5)))
            panels[1].yaxis.set_major_formatter(lambda value, _: format_time(value))
            panels[1].yaxis.set_minor_locator(mpl.ticker.NullLocator())
            panels[1].set_title("Latency")
            panels[1].legend()
        if points:
            axes = panels[-1]
            looks = {point.proofs: point.sample.time for point in points}  # the last one at each number
            proofs, series = _stacks(
                [
                    point.sample._replace(time=float(point.proofs))
                    for point in points
                    if looks[point.proofs] == point.sample.time
                ]
            )
            axes.stackplot(
                proofs, series.values(), colors=[_ROLES[role] for role in series], labels=list(series),
                linewidth=0,
            )  # fmt: skip
            axes.set_xlabel("proofs made")
            axes.set_ylabel("MiB")
            axes.set_title("Memory of the service")
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=len(series))
        canvas.savefig(path, metadata={"Software": None})
        pyplot.close(canvas)
    return True


def _over_clients(axes: Any, clients: Sequence[int], label: str) -> None:
    axes.set_xscale("log")
    axes.set_xticks(clients, [str(n) for n in clients])
    axes.minorticks_off()
    axes.set_xlabel("clients")
    axes.set_ylabel(label)


def _stacks(samples: Sequence[Sample]) -> tuple[list[float], dict[str, list[float]]]:
    """Times, and for each role MiB at each of them."""
    times = sorted({sample.time for sample in samples})
    place = {moment: i for i, moment in enumerate(times)}
    series: dict[str, list[float]] = {}
    for role in _ROLES:
        mine = [sample for sample in samples if sample.role == role]
        if mine:
            series[role] = [0.0] * len(times)
            for sample in mine:
                series[role][place[sample.time]] += sample.held / (1 << 20)
    return times, series
