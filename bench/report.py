"""Rows as one HTML file that needs nothing else, and as the tables of a README."""

from __future__ import annotations

import base64
import html
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from gpuprover.errors import InvalidInput
from gpuprover.formats.files import write_atomic

from . import pictures
from .pictures import Picture, format_time, identity, label_of
from .rows import OURS, Row
from .targets import TARGETS, Outcome, figure, outcomes, variant_name, verdict

Notes = dict[str, str]
"""Target's name, or ``""`` for all of them, -> text."""

_CSS = """
:root { color-scheme: light dark; --ink: #1c2024; --soft: #5b6570; --paper: #ffffff; --line: #dfe3e8;
  --card: #f6f8fa; --good: #00684a; --bad: #a33d00; --accent: #005a94; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaed; --soft: #a2abb5; --paper: #14181c;
  --line: #333b44; --card: #1c2228; --good: #4ecb9f; --bad: #ff9e5e; --accent: #6db9ee; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.25rem 5rem; max-width: 68rem; background: var(--paper);
  color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .5rem; letter-spacing: -.02em; }
h2 { font-size: 1.3rem; margin: 3rem 0 .75rem; letter-spacing: -.01em; }
p, dd, figcaption { max-width: 50rem; }
.soft, figcaption, dt { color: var(--soft); }
nav { margin: 1.25rem 0; display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; }
a { color: var(--accent); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.25rem; margin: 1rem 0; }
dd { margin: 0; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 8px; margin: 1rem 0; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding: .6rem .75rem; color: var(--soft); }
th, td { padding: .4rem .75rem; text-align: left; border-top: 1px solid var(--line); vertical-align: top; }
thead th { background: var(--card); border-top: 0; white-space: nowrap; }
tbody th { font-weight: 500; }
td p { margin: 0 0 .3rem; min-width: 15rem; }
td.n, th.n { text-align: right; white-space: nowrap; }
.met { color: var(--good); font-weight: 600; }
.missed { color: var(--bad); font-weight: 600; }
figure { margin: 1.5rem 0 2rem; }
figure img { width: 100%; height: auto; background: #fff; border: 1px solid var(--line);
  border-radius: 8px; padding: .75rem; }
figcaption { margin-top: .5rem; }
details { margin: 1rem 0; }
summary { cursor: pointer; color: var(--accent); }
code { font-size: .92em; }
"""


class Html(str):
    """Text that is HTML already."""


def _e(text: object) -> Html:
    return text if isinstance(text, Html) else Html(html.escape(str(text)))


def _table(caption: str, head: Sequence[str], body: Iterable[Sequence[object]], numbers: int) -> Html:
    """A table whose last ``numbers`` columns are right-aligned; the first column heads its row."""
    first = len(head) - numbers

    def kind(i: int) -> str:
        return ' class="n"' if i >= first else ""

    lines = [f'<div class="scroll" tabindex="0" role="region" aria-label="{_e(caption)}"><table>']
    lines.append(f"<caption>{_e(caption)}</caption><thead><tr>")
    lines += [f'<th scope="col"{kind(i)}>{_e(name)}</th>' for i, name in enumerate(head)]
    lines.append("</tr></thead><tbody>")
    for cells in body:
        lines.append(f'<tr><th scope="row">{_e(cells[0])}</th>')
        lines += [f"<td{kind(i)}>{_e(cell)}</td>" for i, cell in enumerate(cells[1:], 1)]
        lines.append("</tr>")
    return Html("".join(lines) + "</tbody></table></div>")


# Notes -------------------------------------------------------------------------


def read_notes(path: Path) -> Notes:
    """A note for each target: the text under a line ``## NAME OF THE TARGET``; before the first, for all.

    Raises:
        InvalidInput: the file cannot be read, or names no target.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path}: cannot read: {getattr(error, 'strerror', None) or error}") from None
    parts = re.split(r"^## *(.+?) *$", text, flags=re.MULTILINE)
    notes = {"": re.sub(r"^# .*$", "", parts[0], flags=re.MULTILINE).strip()}
    known = {target.name for target in TARGETS}
    for name, body in zip(parts[1::2], parts[2::2], strict=True):
        if name not in known:
            raise InvalidInput(
                f"{path}: no target is named {name[:60]!r}; they are: {', '.join(sorted(known))}"
            )
        notes[name] = body.strip()
    return {name: body for name, body in notes.items() if body}


def _prose(text: str) -> Html:
    """Paragraphs, with `code` as such."""
    paragraphs = [" ".join(p.split()) for p in re.split(r"\n\s*\n", text) if p.strip()]
    marked = [re.sub(r"`([^`]+)`", r"<code>\1</code>", _e(p)) for p in paragraphs]
    return Html("".join(f"<p>{p}</p>" for p in marked))


# Cells -------------------------------------------------------------------------


def _seconds(row: Row, kind: str, name: str) -> str:
    value = row.get(kind, {}).get(name)
    return "" if value is None else format_time(float(value))


def _work(row: Row) -> str:
    """What was computed, in words."""
    parts = [str(row["operation"])]
    if "circuit" in row:
        parts.append(str(row["circuit"]))
    if "log" in row:
        parts.append(f"2^{row['log']}")
    parts += [str(row[name]) for name in ("scalars", "order", "direction") if row.get(name)]
    if row.get("batch", 1) != 1:
        parts.append(f"each of {row['batch']:,}")
    if curve := row.get("curve"):
        parts.append(pictures.CURVES.get(curve, str(curve)))
    return ", ".join(parts)


def _who(row: Row) -> str:
    return str(row["implementation"]) if row["implementation"] != OURS else f"{OURS}, {variant_name(row)}"


def _faster_cell(row: Row, *, brief: bool = False) -> str:
    """How many times faster ours was; in brief only with the key loaded and one thread."""
    parts = []
    for entry in row.get("faster", []):
        ratio = entry.get("cpu") or entry.get("wall")
        plain = entry.get("mode") == "warm" and (entry.get("threads") or 1) == 1
        if ratio and "median" in ratio and (plain or not brief):
            mode = "" if entry.get("mode") == "warm" else f", {entry.get('mode')}"
            parts.append(f"{ratio['median']:.3g}× ({variant_name(entry)}{mode})")
    return "; ".join(parts)


def _mib(size: Any) -> str:
    return f"{size / (1 << 20):,.0f} MiB" if size else ""


def _value(o: Outcome) -> str:
    if o.target.kind == "seconds":
        return format_time(o.value)
    if o.target.kind == "share":
        return f"{100 * o.value:.0f} %"
    return f"{o.value:.2f}" + ("" if o.target.kind == "growth" else "×")


def _goal(o: Outcome) -> str:
    def text(value: float) -> str:
        if o.target.kind == "seconds":
            return format_time(value)
        return f"{100 * value:.0f} %" if o.target.kind == "share" else f"{value:g}×"

    if o.target.kind == "growth":
        return f"≤ {o.goal:g}"
    dream = f", dream {text(o.target.dream)}" if o.target.dream and o.goal == o.target.goal else ""
    return f"{'≤' if o.target.kind == 'seconds' else '≥'} {text(o.goal)}{dream}"


# The report ---------------------------------------------------------------------


def summary(rows: Sequence[Row]) -> list[tuple[str, str, str, str]]:
    """(target, ours, value, verdict) of all targets that the rows have something for."""
    return [
        (o.target.name, o.variant, f"{_value(o)} (goal {_goal(o)})", verdict(o))
        for entries in outcomes(rows).values()
        for o in entries
    ]


def _has_gpu(rows: Sequence[Row]) -> bool:
    """Whether anything was measured on a GPU."""
    return any(row.get("device") == "cuda" and figure(row) for row in rows)


def _targets_table(rows: Sequence[Row], notes: Notes) -> Html:
    body: list[Sequence[object]] = []
    for target in TARGETS:
        if target.of_gpu and not _has_gpu(rows):
            continue
        against = f" against {target.peer}" if target.peer else ""
        entries = outcomes(rows)[target.name]
        note = _prose(notes[target.name]) if target.name in notes else Html("")
        if not entries:
            body.append((target.name + against, "", Html("not measured here"), note, "", ""))
        for i, o in enumerate(entries):
            shade = "met" if o.met else "missed"
            said = Html(f'<span class="{shade}">{_e(verdict(o))}</span>')
            detail = Html(f'<span class="soft">{_e(o.detail)}</span>') if o.detail else Html("")
            unexplained = Html("" if o.met else '<p class="soft">not explained yet</p>')
            why = (note or unexplained) if i == 0 else Html("")
            body.append((target.name + against, o.variant, said, Html(why + detail), _goal(o), _value(o)))
    head = ("target", "ours", "outcome", "what the profile shows", "goal", "measured")
    return _table("Targets, and how far the newest rows are from them.", head, body, 2)


def _machines(rows: Sequence[Row]) -> Html:
    def values(name: str) -> str:
        found = dict.fromkeys(str(row[name]) for row in rows if row.get(name) not in (None, ""))
        return ", ".join(found)

    processors = dict.fromkeys(
        f"{row.get('processor', 'unknown')}, {row.get('processors', '?')} CPUs" for row in rows
    )
    times = sorted(str(row["time"]) for row in rows if row.get("time"))
    loads = [float(row["load"]) for row in rows if "load" in row]
    facts = [
        ("machine", "; ".join(processors)),
        ("paths", values("path")),
        ("GPU", values("gpu")),
        ("driver; CuPy; NVRTC", "; ".join(filter(None, map(values, ("driver", "cupy", "nvrtc"))))),
        ("commit", values("commit")),
        ("measured", f"{times[0]} to {times[-1]}" if times else "unknown"),
        ("load", f"{min(loads):g} to {max(loads):g} (1 minute average)" if loads else "unknown"),
        ("Python, Numba", f"{values('python')}, {values('numba')}"),
        ("seed", values("seed")),
    ]
    items = [f"<dt>{_e(name)}</dt><dd>{_e(text)}</dd>" for name, text in facts if text]
    no_gpu = "" if _has_gpu(rows) else "<p>None of these rows is of a GPU: there is no figure of one.</p>"
    return Html(f"<dl>{''.join(items)}</dl>{no_gpu}")


def _figures(found: Sequence[Picture]) -> Html:
    parts = []
    for picture in found:
        data = base64.b64encode(picture.path.read_bytes()).decode()
        image = f'<img src="data:image/png;base64,{data}" alt="{_e(picture.alt)}">'
        caption = f"<figcaption>{_e(picture.title)}.</figcaption>"
        parts.append(f'<figure id="{_e(picture.name)}">{image}{caption}</figure>')
    return Html("".join(parts))


_TABLES: dict[str, Callable[[Row], bool]] = {
    "Whole proofs and key set-up": lambda r: str(r["operation"]).endswith((" prove", "setup")),
    "Verification, import": lambda r: str(r["operation"]).endswith((" verify", "import gpuprover")),
    "Multi-scalar multiplications": lambda r: str(r["operation"]).startswith("msm"),
    "Fields, transforms and columns": lambda r: str(r["operation"]).startswith(("ntt", "field", "columns")),
}


def _rates(rows: Sequence[Row]) -> Html:
    """What the GPU can do; the newest row of each counts."""
    newest = {_work(row): row for row in rows if "per_second" in row}
    if not newest:
        return Html("")
    body = [
        (work.removeprefix("rate "), str(row.get("gpu", "")), row["unit"], f"{row['per_second']:.4g}",
         f"{1 / row['wall']['max_s']:.3g} – {1 / row['wall']['min_s']:.3g}")
        for work, row in newest.items()
    ]  # fmt: skip
    head = ("rate", "GPU", "of", "a second, median", "least to most")
    table = _table("What the GPU can do, by itself.", head, body, 2)
    return Html(f"<details open><summary>Rates of the GPU: {len(body)}</summary>{table}</details>")


def _kernels(rows: Sequence[Row]) -> Html:
    """Where a GPU's time goes."""
    newest = {(_work(row), row.get("mode")): row for row in rows if row.get("kernels")}
    if not newest:
        return Html("")
    body = []
    for (work, _), row in newest.items():
        longest = ", ".join(f"{k} {format_time(s)}" for k, s in list(row["kernels"].items())[:6])
        share = f"{100 * row['share']:.0f} %" if "share" in row else ""
        body.append((work, longest, _seconds(row, "wall", "median_s"), share))
    head = ("work", "longest kernels, each awaited", "wall median", "of the multiplier")
    table = _table("Where the time goes on the GPU.", head, body, 2)
    return Html(f"<details><summary>Kernels: {len(body)} rows</summary>{table}</details>")


def _checks(rows: Sequence[Row]) -> Html:
    """Tests and compute-sanitizer on a GPU."""
    body = [
        (row["operation"], str(row.get("commit", "")), str(row.get("error") or "good"),
         row.get("passed", ""), row.get("failed", row.get("found", "")), row.get("skipped", ""))
        for row in rows
        if row["operation"] == "tests" or "found" in row
    ]  # fmt: skip
    if not body:
        return Html("")
    head = ("check", "commit", "", "passed", "failed", "skipped")
    table = _table("Checks on the GPU.", head, body, 3)
    return Html(f"<details><summary>Checks: {len(body)} rows</summary>{table}</details>")


def _measurements(rows: Sequence[Row]) -> Html:
    parts, left = [], [row for row in rows if figure(row) and "per_second" not in row]
    for title, wanted in [*_TABLES.items(), ("Others", lambda _: True)]:
        mine = [row for row in left if wanted(row)]
        left = [row for row in left if not wanted(row)]
        if not mine:
            continue
        head = [
            "work", "by", "how", "times faster is ours", "rounds", "CPU median", "quartiles", "least to most",
            "wall median", "quartiles", "peak memory", "load",
        ]  # fmt: skip
        body = []
        for row in mine:

            def pair(kind: str, a: str, b: str, row: Row = row) -> str:
                low, high = _seconds(row, kind, a), _seconds(row, kind, b)
                return f"{low} – {high}" if low else ""

            body.append(
                (
                    _work(row),
                    _who(row),
                    row.get("mode", ""),
                    _faster_cell(row),
                    figure(row).get("rounds", ""),
                    _seconds(row, "cpu", "median_s"),
                    pair("cpu", "q1_s", "q3_s"),
                    pair("cpu", "min_s", "max_s"),
                    _seconds(row, "wall", "median_s"),
                    pair("wall", "q1_s", "q3_s"),
                    _mib(row.get("peak")),
                    row.get("load", ""),
                )
            )
        table = _table("Seconds of each call or process; spread over the rounds.", head, body, 8)
        parts.append(f"<details><summary>{_e(title)}: {len(mine)} rows</summary>{table}</details>")
    return Html("".join(parts))


def _absent(rows: Sequence[Row]) -> Html:
    body = dict.fromkeys(
        (_who(row) if row["implementation"] != OURS or row.get("path") else str(row.get("device", OURS)),
         _work(row), str(row.get("skipped") or row.get("error")))
        for row in rows
        if row["operation"] != "tests" and (row.get("skipped") or row.get("error"))
    )  # fmt: skip
    if not body:
        return Html("<p>Nothing was skipped, and nothing failed.</p>")
    return _table("What has no figures, and why.", ("who", "work", "reason"), body, 0)


def build(rows: Sequence[Row], found: Sequence[Picture], notes: Notes) -> str:
    """The whole report; it requests nothing, and follows the reader's light or dark setting."""
    general = _prose(notes[""]) if "" in notes else ""
    drawn = _figures(found) if found else f"<p>{_e(pictures.MISSING)}</p>"
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>gpuprover: benchmark</title><style>{_CSS}</style></head><body>
<header><h1>gpuprover: benchmark</h1>
<p class="soft">Everything compared was measured in turns in one run. A ratio is a peer's time over ours,
round by round: above 1 we are faster. With one thread the CPU time counts, which a shared machine
disturbs least.</p>
<nav aria-label="Contents"><a href="#targets">Targets</a><a href="#pictures">Pictures</a>
<a href="#measurements">Measurements</a><a href="#absent">Skipped and failed</a></nav>
{_machines(rows)}</header>
<main><section><h2 id="targets">Targets</h2>{general}{_targets_table(rows, notes)}</section>
<section><h2 id="pictures">Pictures</h2>{drawn}</section>
<section><h2 id="measurements">Measurements</h2>
<p class="soft">Warm: called in a process that has the key loaded and everything compiled. Cold: a process of
its own, key loading included, files in the system's cache as they were. First use: it compiles
everything too.</p>
{_measurements(rows)}{_rates(rows)}{_kernels(rows)}{_checks(rows)}</section>
<section><h2 id="absent">Skipped and failed</h2>{_absent(rows)}</section></main>
</body></html>
"""


def write_report(rows: Sequence[Row], path: Path, notes: Notes) -> list[Picture]:
    """Writes the report, and its pictures beside it; without matplotlib there are none.

    Raises:
        InvalidInput: the folder cannot be written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        found = pictures.draw(rows, path.parent, path.stem) if pictures.available() else []
    except OSError as error:
        raise InvalidInput(f"{path.parent}: cannot write: {error.strerror}") from None
    with write_atomic(path) as file:
        file.write(build(rows, found, notes).encode())
    return found


# README -------------------------------------------------------------------------


def readme(rows: Sequence[Row], folder: str, stem: str, sources: Sequence[Path]) -> str:
    """Markdown for the README's section on speed: pictures, targets, proofs.

    Args:
        folder: where report and pictures are, as the README links them.
    """
    base = f"{folder.rstrip('/')}/" if folder else ""
    out = []
    drawn = {"ratios": "Ratios against other provers", "proofs": "Proofs by size", "msm": "MSM by size"}
    for name, alt in drawn.items():
        if (Path(folder or ".") / f"{stem}-{name}.png").exists():
            out += [f"![{alt}]({base}{stem}-{name}.png)", ""]
    out += ["| target | ours | measured | goal | |", "| --- | --- | --- | --- | --- |"]
    for entries in outcomes(rows).values():
        for o in entries:
            name = o.target.name + (f", against {o.target.peer}" if o.target.peer else "")
            out.append(f"| {name} | {o.variant} | {_value(o)} | {_goal(o)} | {verdict(o)} |")
    newest: dict[tuple[str, ...], Row] = {}
    for row in rows:
        if row["operation"] == "groth16 prove" and figure(row) and (row.get("threads") or 1) == 1:
            key = (str(row.get("curve")), str(row.get("circuit")), identity(row), str(row.get("mode")))
            newest[key] = row
    out += ["", "| proof | by | CPU time | wall time | peak memory | ours is faster |"]
    out.append("| --- | --- | --- | --- | --- | --- |")
    for (curve, circuit, name, mode), row in sorted(newest.items(), key=_by_size):
        who = label_of(name) + ("" if mode == "warm" else f", {mode if mode != 'cold' else 'whole process'}")
        cells = (
            f"{circuit}, {pictures.CURVES.get(curve, curve)}",
            who,
            _seconds(row, "cpu", "median_s"),
            _seconds(row, "wall", "median_s"),
            _mib(row.get("peak")),
            _faster_cell(row, brief=True),
        )
        out.append(f"| {' | '.join(cells)} |")
    links = ", ".join(f"[{p.name}]({base}{p.name})" for p in sources)
    out += ["", f"Rows: {links}; [report]({base}{stem}.html)."]
    return "\n".join(out)


def _by_size(entry: tuple[tuple[str, ...], Row]) -> tuple[bool, int, str, bool]:
    """By curve, constraints and circuit; ours before the others."""
    (curve, circuit, *_), row = entry
    return curve != "bn254", int(row.get("constraints") or 0), circuit, row["implementation"] != OURS


def relative(path: Path, start: Path) -> str:
    """``path`` as a link from ``start``."""
    return Path(os.path.relpath(path.resolve(), start.resolve())).as_posix()
