"""Pictures of rows, drawn with matplotlib: PNG files that a README or a report shows.

Colours are Okabe and Ito's, which people with any colour vision can tell apart; markers and
hatches say the same again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .rows import OURS, Row
from .targets import chain_log, figure, n_log_n, outcomes, variant_name

MISSING = "pictures need matplotlib, rows and tables do not: pip install 'gpuprover[bench]'"

BLUE, SKY, GREEN, VERMILION, ORANGE, PURPLE, YELLOW, INK, GREY = (
    "#0072B2", "#56B4E9", "#009E73", "#D55E00", "#E69F00", "#CC79A7", "#F0E442", "#222222", "#8A8A8A",
)  # fmt: skip
_KNOWN = {
    "cpu ifma": (BLUE, "o"),
    "cpu portable": (SKY, "s"),
    "cuda": (GREEN, "D"),
    "rapidsnark": (VERMILION, "^"),
    "snarkjs": (ORANGE, "v"),
    "snarkjs-warm": (PURPLE, "P"),
    "arkworks": (PURPLE, "X"),
}
_OTHERS = [(INK, "h"), (GREY, "<"), (YELLOW, ">")]
_NAMES = {
    "cpu ifma": "gpuprover, AVX-512 IFMA",
    "cpu portable": "gpuprover, portable",
    "cuda": "gpuprover, GPU",
}
CURVES = {"bn254": "BN254", "bls12-381": "BLS12-381"}

STYLE: Any = {
    "figure.dpi": 160,
    "savefig.dpi": 160,
    "figure.facecolor": "white",
    "font.family": "DejaVu Sans",
    "font.size": 10.5,
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 9,
    "axes.labelsize": 10.5,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#9A9A9A",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.8,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "lines.linewidth": 2.0,
    "lines.markersize": 6.5,
    "legend.frameon": False,
    "hatch.linewidth": 0.8,
}


@dataclass(frozen=True)
class Picture:
    """A file, what it shows, and the same in words for those who cannot see it."""

    name: str
    title: str
    alt: str
    path: Path


@dataclass
class _Line:
    """Points of one series: size -> row."""

    label: str
    colour: str
    marker: str
    points: dict[float, Row]
    value: Callable[[Row], float]
    style: Any = "-"

    def xy(self) -> tuple[list[float], list[float]]:
        xs = sorted(self.points)
        return xs, [self.value(self.points[x]) for x in xs]


def available() -> bool:
    """Whether matplotlib is installed."""
    from importlib.util import find_spec

    return find_spec("matplotlib") is not None


def draw(rows: Sequence[Row], folder: Path, stem: str) -> list[Picture]:
    """Draws all that the rows have something for: ``folder/stem-NAME.png``, for each name.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    usable = _with_machines([row for row in rows if figure(row)])
    painters: dict[str, tuple[str, Callable[[list[Row], Any], tuple[Any, str] | None]]] = {
        "ratios": ("Times faster than the peers, against the targets", _ratios),
        "proofs": ("Whole proofs over the size of the circuit", _proofs),
        "msm": ("Multi-scalar multiplication over its length", _msm),
        "ntt": (
            "Number-theoretic transform over its length; a change of cosets is two, shown by halves",
            _ntt,
        ),
        "scalars": ("What a witness's shape costs: the same length, other scalars", _scalars),
        "phases": ("Where a proof's time goes", _phases),
        "devices": ("CPU against GPU, size by size", _devices),
    }
    pictures = []
    with mpl.rc_context(STYLE):
        for name, (title, paint) in painters.items():
            painted = paint(usable, pyplot)
            if painted is None:
                continue
            canvas, alt = painted
            path = folder / f"{stem}-{name}.png"
            canvas.savefig(path, metadata={"Software": None})
            pyplot.close(canvas)
            pictures.append(Picture(name, title, alt, path))
    return pictures


def _with_machines(rows: Sequence[Row]) -> list[Row]:
    """Rows with ``machine``: its number, 0 for that of the newest row, and its name if there are several."""
    names = list(dict.fromkeys(str(row.get("processor", "")) for row in reversed(rows)))
    machines = {name: (i, f" ({short_processor(name)})" * (len(names) > 1)) for i, name in enumerate(names)}
    return [{**row, "machine": machines[str(row.get("processor", ""))]} for row in rows]


def _newest_machine(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if row["machine"][0] == 0]


# What all pictures share --------------------------------------------------------


def format_time(seconds: float) -> str:
    """``3.2 µs``, ``0.45 s``: two or three digits in the unit that suits."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6), ("ns", 1e-9)):
        if seconds >= size * 0.9995 or unit == "ns":
            value = seconds / size
            digits = 0 if value >= 99.5 else 1 if value >= 9.95 else 2
            return f"{value:.{digits}f} {unit}"
    raise AssertionError


def _tick_time(seconds: float, _: int) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size * 0.9995 or unit == "µs":
            return f"{seconds / size:.6g} {unit}"
    raise AssertionError


def identity(row: Mapping[str, Any]) -> str:
    """A peer's name, or ``device path`` of ours without the threads."""
    if row["implementation"] != OURS:
        return str(row["implementation"])
    return variant_name({**row, "threads": 1})


def label_of(name: str) -> str:
    return _NAMES.get(name, f"gpuprover, {name}" if name.startswith("cpu") else name)


def _look(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker by name; the known ones keep theirs in every picture."""
    others = iter(_OTHERS * (1 + len(names) // len(_OTHERS)))
    return {name: _KNOWN.get(name) or next(others) for name in names}


def _order(names: Iterable[str]) -> list[str]:
    known = list(_KNOWN)
    return sorted(set(names), key=lambda n: (known.index(n) if n in known else len(known), n))


def _median(row: Row) -> float:
    return float(figure(row)["median_s"])


def _one_thread(row: Row) -> bool:
    return row["implementation"] != OURS or (row.get("threads") or 1) == 1


def _lines(rows: Iterable[Row], size: Callable[[Row], float | None]) -> list[_Line]:
    """One line for each contestant; the newest row of a size counts. Several machines get a line each."""
    by_name: dict[tuple[str, tuple[int, str]], dict[float, Row]] = {}
    for row in rows:
        n = size(row)
        if n is not None:
            by_name.setdefault((identity(row), row["machine"]), {})[n] = row
    look = _look(_order(name for name, _ in by_name))
    lines = []
    for name in look:
        for (other, (k, suffix)), points in sorted(by_name.items(), key=lambda entry: entry[0]):
            if other == name:
                style = ("-", "--", ":")[k % 3]
                lines.append(_Line(label_of(name) + suffix, *look[name], points, _median, style))
    return lines


def short_processor(name: str) -> str:
    """``AMD EPYC`` of ``AMD EPYC 9B14 64-Core Processor, IFMA``."""
    words = name.replace("(R)", "").replace("(TM)", "").split(",")[0].split()
    return " ".join(words[:2]) or "unknown"


def _sized(row: Row) -> float | None:
    return float(1 << row["log"]) if isinstance(row.get("log"), int) else None


def _plot(axes: Any, lines: Sequence[_Line], *, guide: bool = True) -> None:
    """Times against sizes, both logarithmic, with a line that grows as n log n."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

    sizes = sorted({x for line in lines for x in line.points})
    for line in lines:
        xs, ys = line.xy()
        axes.plot(
            xs, ys, linestyle=line.style, color=line.colour, marker=line.marker, label=line.label,
            markeredgecolor="white", markeredgewidth=0.9, zorder=3,
        )  # fmt: skip
    if guide and len(sizes) > 1:
        # A little below the first line, so that their slopes can be compared.
        xs, ys = lines[0].xy()
        span = [sizes[0], *sizes, sizes[-1]]
        axes.plot(
            span, n_log_n((xs[-1], ys[-1] * 0.62), span), color=GREY, linewidth=1.3,
            linestyle=(0, (2, 2.2)), label="grows as n log n", zorder=2,
        )  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(FixedLocator(sizes))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda n, _: f"$2^{{{round(n).bit_length() - 1}}}$"))
    low, high = axes.get_ylim()
    # Every power of ten, and where that is less than two of them, 2 and 5 times it too.
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if high > 100 * low else (1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(_tick_time))
    axes.yaxis.set_minor_formatter(FuncFormatter(lambda *_: ""))
    axes.grid(visible=True, which="minor", axis="y", color="#F2F2F2", linewidth=0.5)
    axes.margins(x=0.06, y=0.1)


def _legend(canvas: Any, axes: Sequence[Any], columns: int = 4) -> None:
    """One legend for all panels, above them."""
    found: dict[str, Any] = {}
    for panel in axes:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    canvas.legend(
        found.values(), found.keys(), loc="outside upper left", ncols=min(columns, len(found)),
        handlelength=3.0, columnspacing=1.8, fontsize=10,
    )  # fmt: skip


def _panels(pyplot: Any, count: int, *, height: float = 4.4, columns: int = 2, sharey: bool = True) -> Any:
    columns = min(columns, count)
    rows = -(-count // columns)
    size = (10.0 if columns > 1 else 7.6, height * rows if columns > 1 else height)
    canvas, axes = pyplot.subplots(
        rows, columns, figsize=size, layout="constrained", squeeze=False, sharey=sharey
    )
    canvas.get_layout_engine().set(w_pad=0.08, h_pad=0.1, wspace=0.04, hspace=0.06)
    panels = list(axes.flat)
    for extra in panels[count:]:
        extra.remove()
    return canvas, panels[:count]


def _curves(rows: Iterable[Row]) -> list[str]:
    present = {row.get("curve") for row in rows}
    return [curve for curve in CURVES if curve in present]


def _time_axis(panels: Iterable[Sequence[_Line]], seconds: str = "CPU time, one thread") -> str:
    """What the seconds of the lines are; see :func:`~.targets.figure`."""
    devices = {r.get("device") for lines in panels for line in lines for r in line.points.values()}
    return seconds if devices <= {"cpu", None} else f"{seconds}; GPU: wall time"


def _in_words(lines: Sequence[_Line]) -> str:
    """Each line's largest size, for the text that stands for a picture."""
    parts = []
    for line in lines:
        xs, ys = line.xy()
        parts.append(f"{line.label} {format_time(ys[-1])} at 2^{round(xs[-1]).bit_length() - 1}")
    return "; ".join(parts)


# The pictures ---------------------------------------------------------------------


def _msm(rows: list[Row], pyplot: Any) -> tuple[Any, str] | None:
    found: dict[tuple[str, str], list[_Line]] = {}
    full = [row for row in rows if row.get("scalars") == "full width" and _one_thread(row)]
    for curve in _curves(full):
        for group in ("G1", "G2"):
            chosen = [r for r in full if r["operation"] == f"msm {group}" and r.get("curve") == curve]
            if lines := _lines(chosen, _sized):
                found[curve, group] = lines
    if not found:
        return None
    canvas, panels = _panels(pyplot, len(found), height=4.0)
    for (curve, group), panel in zip(found, panels, strict=True):
        _plot(panel, found[curve, group])
        panel.set_title(f"{CURVES[curve]} {group}")
        panel.set_xlabel("points")
    for panel in panels[::2]:
        panel.set_ylabel(_time_axis(found.values()))
    _legend(canvas, panels)
    words = [f"{CURVES[c]} {g}: {_in_words(lines)}" for (c, g), lines in found.items()]
    return canvas, f"Time of a multi-scalar multiplication with full-width scalars. {'. '.join(words)}."


def _ntt(rows: list[Row], pyplot: Any) -> tuple[Any, str] | None:
    found: dict[str, list[_Line]] = {}
    for curve in _curves(rows):
        mine = [row for row in rows if row.get("curve") == curve and _one_thread(row)]
        plain = [
            row for row in mine if row["operation"] == "ntt" and row.get("order", "natural") == "natural"
        ]
        if not plain:  # rows of before both orders were measured
            plain = [r for r in mine if r["operation"] == "ntt" and r.get("direction") == "forward"]
        lines = _lines(plain, _sized)
        for line in _lines([row for row in mine if row["operation"] == "ntt to coset"], _sized):
            line.label += ", coset change"  # two transforms, each shown by half of it
            line.value, line.style = (lambda row: _median(row) / 2), (0, (4, 1.6))
            lines.append(line)
        if lines:
            found[curve] = lines
    if not found:
        return None
    canvas, panels = _panels(pyplot, len(found), height=4.6)
    for curve, panel in zip(found, panels, strict=True):
        _plot(panel, found[curve])
        panel.set_title(f"{CURVES[curve]}, scalar field")
        panel.set_xlabel("elements")
    panels[0].set_ylabel(_time_axis(found.values()))
    _legend(canvas, panels, columns=3 if len(panels) > 1 else 2)
    words = [f"{CURVES[c]}: {_in_words(lines)}" for c, lines in found.items()]
    return canvas, f"Time of one number-theoretic transform. {'. '.join(words)}."


def _chain_size(row: Row) -> float | None:
    log = chain_log(row)
    return None if log is None else float(1 << log)


def _proofs(rows: list[Row], pyplot: Any) -> tuple[Any, str] | None:
    found: dict[str, list[_Line]] = {}
    for curve in _curves(rows):
        chosen = [
            row
            for row in rows
            if row["operation"] == "groth16 prove"
            and row.get("curve") == curve
            and _one_thread(row)
            and (row["implementation"] != OURS or row.get("mode") == "warm")
        ]
        lines = _lines(chosen, _chain_size)
        for line in lines:
            mode = next(iter(line.points.values())).get("mode")
            line.label += ", whole process" if mode == "cold" else ""
        if lines:
            found[curve] = lines
    if not found:
        return None
    canvas, panels = _panels(pyplot, len(found), height=4.8)
    for curve, panel in zip(found, panels, strict=True):
        _plot(panel, found[curve])
        panel.set_title(f"Groth16 over {CURVES[curve]}")
        panel.set_xlabel("constraints (chain circuits, full-width witness)")
    panels[0].set_ylabel(_time_axis(found.values(), "CPU time of a proof"))
    _legend(canvas, panels, columns=3 if len(panels) > 1 else 2)
    words = [f"{CURVES[c]}: {_in_words(lines)}" for c, lines in found.items()]
    return (
        canvas,
        f"Time of a whole Groth16 proof, ours with the key loaded and one thread. {'. '.join(words)}.",
    )


def _scalars(rows: list[Row], pyplot: Any) -> tuple[Any, str] | None:
    found: dict[str, tuple[int, dict[str, dict[str, Row]]]] = {}
    for group in ("G1", "G2"):
        ours = [
            row
            for row in _newest_machine(rows)
            if row["operation"] == f"msm {group}"
            and row.get("curve") == "bn254"
            and row["implementation"] == OURS
            and _one_thread(row)
        ]
        logs = {row["log"] for row in ours if row.get("scalars") != "full width"}
        if not logs:
            continue
        names: dict[str, dict[str, Row]] = {}
        for row in ours:
            if row["log"] == max(logs):
                names.setdefault(identity(row), {})[row["scalars"]] = row
        found[group] = max(logs), names
    if not found:
        return None
    canvas, panels = _panels(pyplot, len(found), height=4.2, sharey=False)
    words = []
    for (group, (log, names)), panel in zip(found.items(), panels, strict=True):
        kinds = sorted(
            {kind for by_kind in names.values() for kind in by_kind},
            key=lambda kind: -max(_median(b[kind]) for b in names.values() if kind in b),
        )
        look, width = _look(_order(names)), 0.8 / len(names)
        for k, name in enumerate(look):
            places = [i - 0.4 + (k + 0.5) * width for i, kind in enumerate(kinds) if kind in names[name]]
            values = [_median(names[name][kind]) for kind in kinds if kind in names[name]]
            bars = panel.barh(
                places, values, width * 0.9, color=look[name][0], label=label_of(name),
                hatch="" if k == 0 else "///", edgecolor="white", linewidth=0,
            )  # fmt: skip
            panel.bar_label(bars, [format_time(v) for v in values], padding=4, fontsize=9.5, color=INK)
            words.append(f"{group} {label_of(name)}: ")
            words[-1] += ", ".join(f"{kind} {format_time(v)}" for kind, v in zip(kinds, values, strict=False))
        panel.set_yticks(range(len(kinds)), kinds)
        panel.invert_yaxis()
        panel.grid(visible=False, axis="y")
        panel.margins(x=0.22)
        panel.tick_params(axis="x", labelbottom=False, length=0)
        panel.tick_params(axis="y", length=0)
        panel.grid(visible=False)
        panel.spines["bottom"].set_visible(False)
        panel.set_title(f"BN254 {group}, $2^{{{log}}}$ points")
    _legend(canvas, panels)
    return canvas, f"Time of a multi-scalar multiplication by the kind of scalars. {'. '.join(words)}."


def _phases(rows: list[Row], pyplot: Any) -> tuple[Any, str] | None:
    newest: dict[tuple[str, str, str], Row] = {}
    for row in _newest_machine(rows):
        if (
            row.get("phases")
            and row.get("mode") == "warm"
            and _one_thread(row)
            and sum(row["phases"].values())
        ):
            newest[str(row["curve"]), str(row.get("circuit")), identity(row)] = row
    if not newest:
        return None
    # The quickest of ours tells the story; other paths stand in the tables.
    names = _order(name for _, _, name in newest)
    shown = [(k, r) for k, r in newest.items() if k[2] == names[0] and (chain_log(r) or 99) >= 14]
    shown = shown or [(k, r) for k, r in newest.items() if k[2] == names[0]]
    shown.sort(key=lambda kr: (list(CURVES).index(kr[0][0]), kr[1].get("constraints", 0)))
    shown = shown[:14]
    totals = [sum(r["phases"].values()) for _, r in shown]
    everything = list(dict.fromkeys(p for _, r in shown for p in r["phases"]))
    large = [
        p for p in everything
        if any(r["phases"].get(p, 0) >= 0.03 * t for (_, r), t in zip(shown, totals, strict=True))
    ]  # fmt: skip
    colours = [BLUE, SKY, GREEN, YELLOW, ORANGE, VERMILION, PURPLE, "#999933", INK]
    canvas, axes = pyplot.subplots(figsize=(10, 1.5 + 0.42 * len(shown)), layout="constrained")
    lefts = [0.0] * len(shown)
    words = []
    for k, phase in enumerate([*large, "other"]):
        shares = []
        for (_, r), total in zip(shown, totals, strict=True):
            seconds = (
                r["phases"].get(phase, 0.0)
                if phase != "other"
                else total - sum(r["phases"].get(p, 0.0) for p in large)
            )
            shares.append(100 * max(0.0, seconds) / total)
        colour = GREY if phase == "other" else colours[k % len(colours)]
        bars = axes.barh(
            range(len(shown)), shares, 0.74, left=lefts, color=colour, label=phase, edgecolor="white",
            linewidth=0.8,
        )  # fmt: skip
        dark = colour in (BLUE, GREEN, VERMILION, INK, GREY)
        axes.bar_label(
            bars, [f"{s:.0f} %" if s >= 6 else "" for s in shares], label_type="center", fontsize=9,
            color="white" if dark else INK,
        )  # fmt: skip
        lefts = [a + b for a, b in zip(lefts, shares, strict=True)]
    for i, ((_, r), _) in enumerate(zip(shown, totals, strict=True)):
        axes.text(101, i, format_time(_median(r)), va="center", fontsize=10, color=INK)
        top = max(r["phases"], key=lambda p: r["phases"][p])
        words.append(f"{r['circuit']} over {CURVES[r['curve']]} {format_time(_median(r))}, most of it {top}")
    axes.set_yticks(range(len(shown)), [f"{c}, {CURVES[curve]}" for (curve, c, _), _ in shown])
    axes.invert_yaxis()
    axes.set_xlim(0, 109)
    axes.set_xticks(range(0, 101, 20), [f"{x} %" for x in range(0, 101, 20)])
    axes.set_xlabel(f"share of a proof's time, key loaded, one thread ({label_of(names[0])})")
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    _legend(canvas, [axes], columns=7)
    return canvas, f"Shares of a proof's phases. {'; '.join(words)}."


def _ratios(rows: list[Row], pyplot: Any) -> tuple[Any, str] | None:
    found = [o for entries in outcomes(rows).values() for o in entries if o.target.kind == "faster"]
    if not found:
        return None
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
    from matplotlib.ticker import FixedLocator, NullLocator

    names = list(dict.fromkeys(o.target.name for o in found))
    groups = {name: [o for o in found if o.target.name == name] for name in names}
    height = sum(0.3 * len(entries) + 0.22 for entries in groups.values())
    canvas, axes = pyplot.subplots(figsize=(10, 1.5 + height), layout="constrained")
    place, ticks, shades = 0.0, [], {}
    for entries in groups.values():
        first = place
        for o in entries:
            portable = "portable" in o.variant
            colour = _KNOWN.get(o.variant, (GREEN, ""))[0]
            shades[label_of(o.variant)] = (colour, portable)
            axes.barh(
                place, o.value, 0.26, left=0, color=colour, hatch="///" if portable else "",
                edgecolor="white", linewidth=0, zorder=2,
            )  # fmt: skip
            if o.low is not None and o.high is not None:
                axes.plot([o.low, o.high], [place, place], color=INK, linewidth=1.2, zorder=4)
            axes.plot([o.goal] * 2, [place - 0.17, place + 0.17], color=INK, linewidth=2.4, zorder=5)
            if o.target.dream and not portable:
                axes.plot(
                    o.target.dream, place, marker="D", markersize=5.5, color="white", markeredgecolor=INK,
                    zorder=5,
                )  # fmt: skip
            verdict = "met" if o.met else f"{100 * o.share:.0f} % of the target"
            right = max(o.value, o.high or 0, o.goal, (o.target.dream or 0) if not portable else 0)
            axes.annotate(
                f"{o.value:.2f}×  {verdict}" if o.value < 10 else f"{o.value:.1f}×  {verdict}",
                (right, place), (8, 0), textcoords="offset points", va="center", fontsize=9.5,
                color=INK if o.met else VERMILION,
            )  # fmt: skip
            place += 0.3
        ticks.append((first + place - 0.3) / 2)
        place += 0.22
    axes.set_xscale("log")
    top = max(max(o.value, o.target.dream or 0, o.goal) for o in found)
    low = min(0.5, *(0.8 * o.value for o in found))
    axes.set_xlim(low, top * 3.2)
    marks = [x for x in (0.1, 0.2, 0.5, 1, 2, 4, 8, 15, 30, 60, 120) if low <= x <= top * 1.3]
    axes.xaxis.set_major_locator(FixedLocator(marks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([f"{x:g}×" for x in marks])
    axes.axvline(1, color="#9A9A9A", linewidth=1.2, zorder=1)
    axes.set_yticks(ticks, [f"{n}\nagainst {groups[n][0].target.peer}" for n in names], fontsize=9.5)
    axes.set_ylim(place - 0.1, -0.32)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("times faster in CPU time, one thread; medians, quartiles as thin lines")
    handles: list[Any] = [
        Patch(facecolor=colour, hatch="///" if hatched else "", edgecolor="white", label=name)
        for name, (colour, hatched) in shades.items()
    ]
    for marker, size, colour, name in (("|", 12, INK, "target"), ("D", 5.5, "white", "dream")):
        handles.append(
            Line2D(
                [], [], linestyle="", marker=marker, markersize=size, color=colour, markeredgecolor=INK,
                markeredgewidth=2.4 if marker == "|" else 1, label=name,
            )
        )  # fmt: skip
    canvas.legend(handles=handles, loc="outside upper left", ncols=4, fontsize=10)
    words = [f"{o.target.name}, {o.variant}: {o.value:.2f} of {o.goal:g}" for o in found]
    return canvas, f"How many times faster than each peer, with targets. {'; '.join(words)}."


def _devices(rows: list[Row], pyplot: Any) -> tuple[Any, str] | None:
    """Wall times of both; drawn as soon as there are rows of a device other than the CPU."""
    ours = [
        r for r in rows if r["implementation"] == OURS and r.get("mode", "warm") == "warm" and "wall" in r
    ]
    if not any(r.get("device") not in ("cpu", None) for r in ours):
        return None
    kinds: dict[str, tuple[Callable[[Row], bool], Callable[[Row], float | None]]] = {
        "proofs of chains": (lambda r: r["operation"] == "groth16 prove", _chain_size),
        "MSM G1": (lambda r: r["operation"] == "msm G1" and r.get("scalars") == "full width", _sized),
        "NTT": (lambda r: r["operation"] == "ntt" and r.get("order", "natural") == "natural", _sized),
    }
    found: dict[tuple[str, str], dict[str, dict[float, float]]] = {}
    for curve in _curves(ours):
        for kind, (wanted, size) in kinds.items():
            fastest: dict[str, dict[float, float]] = {}
            for row in ours:
                n = size(row) if wanted(row) and row.get("curve") == curve else None
                if n is None:
                    continue
                by_size = fastest.setdefault("cpu" if row.get("device", "cpu") == "cpu" else "cuda", {})
                wall = float(row["wall"]["median_s"])
                by_size[n] = min(wall, by_size.get(n, wall))  # the best path and number of threads
            if len(fastest) == 2 and fastest["cpu"].keys() & fastest["cuda"].keys():
                found[curve, kind] = fastest
    if not found:
        return None
    canvas, panels = _panels(pyplot, len(found), height=3.6, columns=3, sharey=False)
    words = []
    for ((curve, kind), fastest), panel in zip(found.items(), panels, strict=True):
        lines = [
            _Line(label, *look, {n: {"t": t} for n, t in fastest[device].items()}, lambda r: float(r["t"]))
            for device, label, look in (("cpu", "CPU", (BLUE, "o")), ("cuda", "GPU", (GREEN, "D")))
        ]
        _plot(panel, lines)
        for n in sorted(fastest["cpu"].keys() & fastest["cuda"].keys()):
            cpu, gpu = fastest["cpu"][n], fastest["cuda"][n]
            panel.annotate(
                f"{cpu / gpu:.2g}×" if cpu / gpu < 10 else f"{cpu / gpu:.0f}×",
                (n, max(cpu, gpu)), (0, 8), textcoords="offset points", ha="center", fontsize=9.5, color=INK,
            )  # fmt: skip
            words.append(
                f"{CURVES[curve]} {kind} 2^{round(n).bit_length() - 1}: GPU {cpu / gpu:.2g} times faster"
            )
        panel.set_title(f"{CURVES[curve]}, {kind}")
        panel.set_xlabel("size")
        panel.margins(x=0.1, y=0.16)
    for panel in panels[::3]:
        panel.set_ylabel("wall time")
    _legend(canvas, panels)
    return canvas, f"Wall times of CPU and GPU. {'; '.join(words)}."
