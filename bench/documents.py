"""Tables of measured figures in documents, filled in from rows.

A document holds ``<!-- rows: NAME -->``, a table, ``<!-- end -->``; what is between is replaced by the table
of that name (:data:`TABLES`). ``gpuprover bench fill FILE.md --rows ROWS.jsonl`` does it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gpuprover import calibration, memory, sizing
from gpuprover.errors import InvalidInput
from gpuprover.formats.files import write_atomic

from .pictures import CURVES
from .processes import MAIN, PROVER, VERIFIER
from .rows import OURS, Row

_BLOCK = re.compile(r"(<!-- rows: ([\w-]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
NOTHING = "Not measured yet."
LARGE_KEY = 100e6
"""Bytes of a key from which on its copies count: beside a small one a worker grows by other things."""

# Tables ----------------------------------------------------------------------------


def newest(rows: Sequence[Row], operation: str, **fields: Any) -> list[Row]:
    """The rows of the last run that has any of this operation with these fields and figures."""
    found = [
        row
        for row in rows
        if row["operation"] == operation
        and "error" not in row
        and all(row.get(name) == value for name, value in fields.items())
    ]
    return [row for row in found if row.get("run") == found[-1].get("run")]


def mib(size: float | None) -> str:
    return "" if size is None else f"{size / memory.MIB:,.0f} MiB"


def seconds(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value * 1000:.3g} ms" if value < 1 else f"{value:.3g} s"


def table(head: Sequence[str], body: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a markdown table."""
    return [
        f"| {' | '.join(head)} |",
        f"|{' --- |' * len(head)}",
        *(f"| {' | '.join(cells)} |" for cells in body),
    ]


def _held(row: Row, when: str, role: str, name: str) -> int | None:
    value: int | None = row.get(when, {}).get(role, {}).get(name)
    return value


def policies_table(rows: Sequence[Row]) -> list[str]:
    """Memory and latency of each policy."""
    body = []
    starts = {how: {r["mode"]: r for r in newest(rows, "processes", start=how)} for how in ("cold", "warm")}
    for policy, row in starts["warm"].items():
        cold = starts["cold"].get(policy, {})
        total = sum(role.get("pss", role["rss"]) for role in row["before"].values())
        after = sum(role.get("pss", role["rss"]) for role in row["after"].values())
        body.append(
            (
                f"`{policy}`",
                seconds(row["ready_s"]) + (f" ({seconds(cold['ready_s'])})" if cold else ""),
                seconds(row.get("first_proof_s"))
                + (f" ({seconds(cold['first_proof_s'])})" if "first_proof_s" in cold else ""),
                seconds(row.get("next_proof_s")),
                seconds(row["first_verification_s"]),
                mib(total),
                mib(after),
            )
        )
    head = (
        "policy", "ready (cold)", "first proof (cold)", "next", "first verification", "PSS before", "PSS "
        "after",
    )  # fmt: skip
    return table(head, body)


def roles_table(rows: Sequence[Row]) -> list[str]:
    """What each process of an eager engine holds, before and after proofs and verifications."""
    body = []
    for row in newest(rows, "processes", start="warm", mode="eager"):
        for role, after in row["after"].items():
            before = row["before"].get(role, {})
            count = f"{role} × {after['processes']}" if after["processes"] > 1 else role
            body.append(
                (
                    count,
                    mib(before.get("pss")),
                    mib(after.get("pss")),
                    mib(after.get("private")),
                    mib(after.get("rss")),
                    mib(after.get("peak")),
                )
            )
    return table(("process", "PSS before", "PSS after", "private after", "RSS after", "peak of one"), body)


def verifier_table(rows: Sequence[Row]) -> list[str]:
    """A verifier process alone, by how it was started."""
    body = [
        (
            row["start"],
            seconds(row["ready_s"]),
            seconds(row["first_verification_s"]),
            seconds(row["verification_s"]),
            seconds(row.get("recovery_s")),
            mib(_held(row, "after", VERIFIER, "private")),
            mib(_held(row, "after", VERIFIER, "peak")),
        )
        for how in ("first use", "cold", "warm")
        for row in newest(rows, "verifier", start=how)
    ]
    head = ("start", "ready", "first verification", "later ones", "after a kill", "private", "peak")
    return table(head, body)


def goals_table(rows: Sequence[Row]) -> list[str]:
    """What was aimed at, and what the newest rows say."""
    found: list[tuple[str, str, str, str]] = []

    def goal(
        what: str, value: float | None, most: float, show: Callable[[float], str], dream: float | None = None
    ) -> None:
        if value is None:
            return
        wanted = f"≤ {show(most)}" + ("" if dream is None else f", dream {show(dream)}")
        verdict = "missed" if value > most else "met"
        found.append(
            (
                what,
                show(value),
                wanted,
                verdict + (", dream too" if dream is not None and value <= dream else ""),
            )
        )

    for row in newest(rows, "verifier", start="warm"):
        private = _held(row, "after", VERIFIER, "private")
        goal(f"verifier, private, after {row['verifications']:,} verifications", private, 200e6, mib, 100e6)
        goal("verifier, ready, warm", row["ready_s"], 1.5, seconds)

    for row in newest(rows, "processes", start="warm"):
        policy, count = row["mode"], row["verifications"]
        private = _held(row, "after", VERIFIER, "private")
        goal(f"verifier, private, after {count:,} verifications, `{policy}`", private, 200e6, mib, 100e6)
        if policy == "off":
            goal("node that proves nothing, ready", row["ready_s"], 1.5, seconds)
            workers = row["after"].get(PROVER, {}).get("processes", 0)
            goal("its proving processes", float(workers), 0.0, "{:.0f}".format)
    for row in newest(rows, "key copies"):
        if row["key_bytes"] < LARGE_KEY:
            continue
        many = f"copies of a key of {row['key_bytes'] / 1e6:.0f} MB that {row['proving']} workers hold"
        goal(f"{many}: mapped pages", row.get("copies"), 1.3, "{:.2f}".format)
        goal(f"{many}: all that they grow by", row.get("copies_in_all"), 1.3, "{:.2f}".format)
    return table(
        ("goal", "measured", "wanted", ""),
        found,
    )


def network_table(rows: Sequence[Row]) -> list[str]:
    """What each node of the small network did and holds at its end."""
    body = []
    for row in newest(rows, "network"):
        roles = row["after"]

        def share(role: str, roles: Mapping[str, Row] = roles) -> str:
            return mib(roles.get(role, {}).get("pss", roles.get(role, {}).get("rss")))

        body.append(
            (
                row["node"], f"`{row['mode']}`", str(row["proofs"]), str(row["verifications"]),
                share(MAIN), share(VERIFIER), share(PROVER),
            )
        )  # fmt: skip
    return table(("node", "policy", "proofs", "verified", "main", "verifier", "workers"), body)


def _proofs(rows: Sequence[Row], **fields: Any) -> dict[tuple[str, str], Row]:
    """(Curve, circuit) -> its newest proof of ours on the CPU with these fields, small circuits first."""
    found = {}
    for row in rows:
        ours = row["operation"] == "groth16 prove" and row.get("implementation") == OURS
        if ours and all(row.get(name) == value for name, value in fields.items()) and "wall" in row:
            found[str(row["curve"]), str(row["circuit"])] = row
    return dict(sorted(found.items(), key=lambda item: (item[0][0] != "bn254", item[1]["constraints"])))


def threads_table(rows: Sequence[Row]) -> list[str]:
    """A proof with one thread and with two, and what that makes of throughput."""
    plain = {"device": "cpu", "path": "ifma", "mode": "warm", "memory_limit": None}
    body = []
    two = _proofs(rows, **plain, threads=2)
    for key, many in two.items():
        one = _proofs([r for r in rows if r.get("run") == many["run"]], **plain, threads=1).get(key)
        if one is None:
            continue
        first, second = one["wall"]["median_s"], many["wall"]["median_s"]
        _, alone, _ = calibration.row(one["constraints"], first, second, 2)
        body.append(
            (
                f"{key[1]}, {CURVES.get(key[0], key[0])}",
                seconds(first),
                seconds(second),
                f"{first / second:.2f}",
                f"{alone / second:.0%}",
                f"{sizing.HOUR / second:,.0f}",
                f"{2 * sizing.HOUR / first:,.0f}",
                f"{sizing.by_formula(2, 1, second):,.0f}",
            )
        )
    head = (
        "proof", "one thread", "two", "times as fast", "on one thread", "an hour, in turns", "two side by "
        "side",
        "by the formula",
    )  # fmt: skip
    return table(head, body)


def peaks_table(rows: Sequence[Row]) -> list[str]:
    """Memory of a whole process that makes one proof."""
    body = [
        (
            f"{circuit}, {CURVES.get(curve, curve)}",
            f"{row['constraints']:,}",
            mib(row.get("peak")),
            seconds(row["wall"]["median_s"]),
        )
        for (curve, circuit), row in _proofs(
            rows, device="cpu", path="ifma", mode="cold", memory_limit=None
        ).items()
    ]
    return table(("proof", "constraints", "peak", "from start to end"), body)


def limits_table(rows: Sequence[Row]) -> list[str]:
    """The largest proofs under a memory limit, and without."""
    body = []
    limited = [row for row in rows if row.get("memory_limit") and row["operation"] == "groth16 prove"]
    for limit in sorted({row["memory_limit"] for row in limited}, reverse=True):
        found = _proofs(limited, device="cpu", path="ifma", mode="warm", threads=2, memory_limit=limit)
        cold = _proofs(limited, device="cpu", path="ifma", mode="cold", memory_limit=limit)
        for key, row in found.items():
            body.append(
                (
                    f"{key[1]}, {CURVES.get(key[0], key[0])}",
                    f"{limit} MiB",
                    seconds(row["wall"]["median_s"]),
                    mib(cold[key].get("peak")) if key in cold else "",
                )
            )
    return table(("proof", "limit", "two threads", "peak with the mapped key"), body)


TABLES: Mapping[str, Callable[[Sequence[Row]], list[str]]] = {
    "policies": policies_table,
    "verifier": verifier_table,
    "roles": roles_table,
    "goals": goals_table,
    "network": network_table,
    "threads": threads_table,
    "peaks": peaks_table,
    "limits": limits_table,
}
"""Name in a document -> its lines from rows."""


# Documents -------------------------------------------------------------------------


def filled(text: str, rows: Sequence[Row], source: str) -> str:
    """A document with its blocks filled in.

    Raises:
        InvalidInput: it has no block, or one of a name that no table has.
    """
    names = [found[2] for found in _BLOCK.finditer(text)]
    if not names:
        raise InvalidInput(f"{source}: no block between <!-- rows: NAME --> and <!-- end -->")
    for name in names:
        if name not in TABLES:
            raise InvalidInput(f"{source}: no table is named {name!r}; they are: {', '.join(TABLES)}")

    def block(found: re.Match[str]) -> str:
        head, *body = TABLES[found[2]](rows)
        lines = [head, *body] if len(body) > 1 else [NOTHING]
        return found[1] + "\n" + "\n".join(lines) + "\n\n" + found[4]

    return _BLOCK.sub(block, text)


def fill(path: Path, rows: Sequence[Row]) -> None:
    """Fills in a file.

    Raises:
        InvalidInput: it cannot be read or written, or :func:`filled` refuses it.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path}: cannot read: {getattr(error, 'strerror', None) or error}") from None
    with write_atomic(path) as file:
        file.write(filled(text, rows, str(path)).encode())
