"""Settings as a process has them: by argument, else from ``PROVER_*`` variables, else from the machine.

What a single command needs is in :class:`Settings`, what a prover needs in :class:`EngineSettings`, what the
HTTP service needs besides in :class:`ServiceSettings`; all remember where each value came from. Their names,
parsers, defaults and meanings are the rows of :data:`gpuprover.settings.SETTINGS`.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

from gpuprover.errors import InvalidInput
from gpuprover.machine import available_cpus
from gpuprover.settings import BY_NAME, ENVIRONMENT_PREFIX, SETTINGS, Setting


@dataclass(frozen=True)
class Settings:
    """What one run may use.

    Attributes:
        device: ``auto``, ``cpu``, ``cuda``, ...; lower case, not yet checked against the backends.
        threads: at most this many threads work at once; at least 1.
        memory_limit: MiB for one proof, or None for no limit but the machine's.
        sources: field name -> ``"argument"``, the variable's name, or ``"machine"``.
    """

    device: str = "auto"
    threads: int = 1
    memory_limit: int | None = None
    sources: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True)
class EngineSettings:
    """What a prover may use, and how it behaves. :data:`SETTINGS` says what each field means, and its unit.

    Attributes:
        sources: field name -> ``"argument"``, the variable's name, ``"machine"`` where the value follows from
            the machine or from other settings, or ``"default"``.
    """

    circuit_keys_path: Path
    preload_circuits: tuple[str, ...]
    device: str
    threads: int
    memory_limit: int
    memory_watermark: float
    policy: str
    verifier: str
    verification_timeout: float
    min_workers: int
    max_workers: int
    max_proofs_per_worker: int
    worker_memory: int
    queue_limit: int
    tenant_queue_limit: int
    job_timeout: float
    overtaking_limit: float
    admission_wait: float
    retry_delay: float
    init_timeout: float
    load_timeout: float
    worker_wait: float
    heartbeat_timeout: float
    stall_timeout: float
    idle_timeout: float
    grace_period: float
    key_cache: int
    proof_cache: int
    verification_cache: int
    cache_ttl: float
    leak_alarm: float
    sources: Mapping[str, str]

    def as_dict(self) -> dict[str, Any]:
        """Plain values by name, as JSON has them; without the sources."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self) if f.name != "sources"}


@dataclass(frozen=True)
class ServiceSettings:
    """How the HTTP service behaves. :data:`SETTINGS` says what each field means, and its unit.

    Attributes:
        sources: field name -> where its value comes from, as in :class:`EngineSettings`.
    """

    host: str
    port: int
    tokens_file: Path | None
    tenant_share: float
    body_memory: int
    body_limit: int
    json_memory: int
    connection_limit: int
    head_timeout: float
    keep_alive: float
    pause_limit: float
    least_rate: int
    priority_limit: int
    result_ttl: float
    result_limit: int
    rapidsnark: bool
    midnight: bool
    midnight_parameters: Path | None
    midnight_key_cache: int
    midnight_values: bool
    sources: Mapping[str, str]

    def as_dict(self) -> dict[str, Any]:
        """Plain values by name, as JSON has them; without the sources."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self) if f.name != "sources"}


def _given(
    rows: Iterable[Setting], arguments: Mapping[str, Any], environment: Mapping[str, str] | None, option: str
) -> tuple[dict[str, Any], dict[str, str]]:
    """What is set, parsed, and by whom. ``option`` stands before an argument's name in messages."""
    environment = os.environ if environment is None else environment
    values, sources = {}, {}
    for row in rows:
        value, text = arguments.get(row.name), environment.get(row.variable, "")
        if value is not None:
            name = option + row.name.replace("_", "-") if option else row.name
            values[row.name], sources[row.name] = row.parse(value, name), "argument"
        elif text.strip():
            values[row.name], sources[row.name] = row.parse(text, row.variable), row.variable
    return values, sources


def load_settings(
    arguments: Mapping[str, str | None], environment: Mapping[str, str] | None = None
) -> Settings:
    """Settings from a command's arguments (field name -> text, None where not given), environment, machine.

    Raises:
        InvalidInput: a value cannot be used; the message names the option or the variable.
    """
    rows = [BY_NAME[name] for name in ("device", "threads", "memory_limit")]
    values, sources = _given(rows, arguments, environment, "--")
    if "threads" not in values:
        values["threads"] = available_cpus()
    return Settings(
        **values, sources=MappingProxyType({row.name: sources.get(row.name, "machine") for row in rows})
    )


def load_engine_settings(
    arguments: Mapping[str, Any], environment: Mapping[str, str] | None = None, *, options: bool = False
) -> EngineSettings:
    """Settings of a prover from arguments, environment, machine.

    Args:
        arguments: field name -> a Python value or text; None where not given.
        environment: variables; the process's by default.
        options: the arguments are a command's, and errors name them ``--like-this``.

    Raises:
        InvalidInput: a value cannot be used, or there is no argument of that name.
    """
    rows = [row for row in SETTINGS if row.own]
    for name in arguments:
        if name not in {row.name for row in rows}:
            raise InvalidInput(f"{name}: no such setting{_meant(name, [row.name for row in rows])}")
    values, sources = _given(rows, arguments, environment, "--" if options else "")
    for row in rows:
        if row.name not in values:
            values[row.name] = row.default(values) if callable(row.default) else row.default
    if values["min_workers"] > values["max_workers"]:
        raise InvalidInput(
            f"min_workers: expected at most max_workers, which is {values['max_workers']}, "
            f"found {values['min_workers']}"
        )
    if values["overtaking_limit"] > values["job_timeout"]:
        raise InvalidInput(
            f"overtaking_limit: expected at most job_timeout, which is {values['job_timeout']:g} s, "
            f"found {values['overtaking_limit']:g}"
        )
    unset = {row.name: "machine" if callable(row.default) else "default" for row in rows}
    return EngineSettings(**values, sources=MappingProxyType(unset | sources))


def load_service_settings(
    arguments: Mapping[str, Any], engine: EngineSettings, environment: Mapping[str, str] | None = None
) -> ServiceSettings:
    """Settings of the HTTP service from a command's options, environment, and those of its prover.

    Raises:
        InvalidInput: a value cannot be used.
    """
    rows = [row for row in SETTINGS if row.service]
    values, sources = _given(rows, arguments, environment, "--")
    given: dict[str, Any] = {"memory_limit": engine.memory_limit} | values
    for row in rows:
        if row.name not in given:
            given[row.name] = row.default(given) if callable(row.default) else row.default
    most = max(1, int(given["body_memory"] * given["tenant_share"]))
    if given["body_limit"] > most:
        raise InvalidInput(
            f"body_limit: expected at most {most} MiB, which is tenant_share of body_memory, "
            f"found {given['body_limit']}"
        )
    unset = {row.name: "machine" if callable(row.default) else "default" for row in rows}
    return ServiceSettings(
        **{row.name: given[row.name] for row in rows}, sources=MappingProxyType(unset | sources)
    )


def describe(settings: EngineSettings, environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Every row of the table: name -> ``{"value", "unit", "source", "variable", "meaning"}``, plain values.

    Raises:
        InvalidInput: a variable that a prover does not take as an argument cannot be used.
    """
    others, sources = _given([row for row in SETTINGS if not (row.own or row.service)], {}, environment, "")
    service = load_service_settings({}, settings, environment)
    values = settings.as_dict() | service.as_dict() | others
    sources |= {**settings.sources, **service.sources}
    return {
        row.name: {
            "value": values.get(row.name),
            "unit": row.unit,
            "source": sources.get(row.name, "default"),
            "variable": row.variable,
            "meaning": row.meaning,
        }
        for row in SETTINGS
    }


def markdown_table() -> str:
    """The table of docs/configuration.md."""
    lines = ["| variable | argument | value | default | what it is |", "| --- | --- | --- | --- | --- |"]
    for row in SETTINGS:
        option = "--" + row.name.replace("_", "-")
        argument = f"`{row.name}`" if row.own else f"`serve {option}`" if row.service else ""
        value = f"{row.values} {row.unit}".rstrip() if row.unit else row.values
        default = row.default_text or f"{_text(row.default)} {row.unit}".rstrip()
        lines.append(f"| `{row.variable}` | {argument} | {value} | {default} | {row.meaning} |")
    return "\n".join(lines) + "\n"


def unknown_variables(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Variables that look like settings and are none -> a line that says so, and which may be meant."""
    environment = os.environ if environment is None else environment
    known = [row.variable for row in SETTINGS]
    return {
        name: f"{name}: no such setting{_meant(name, known)}"
        for name in sorted(environment)
        if name.startswith(ENVIRONMENT_PREFIX) and name not in known
    }


def _meant(name: str, known: list[str]) -> str:
    # Without the prefix, by which all variables are alike.
    by_end = {other.removeprefix(ENVIRONMENT_PREFIX): other for other in known}
    ends = difflib.get_close_matches(name.removeprefix(ENVIRONMENT_PREFIX), by_end, n=1, cutoff=0.75)
    close = [by_end[end] for end in ends]
    return f"; is {close[0]} meant?" if close else ""


def _text(value: Any) -> str:
    return (
        f"{value:g}" if isinstance(value, float) else f"`{value}`" if isinstance(value, str) else str(value)
    )


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Path) else value


def default_threads() -> int:
    """``PROVER_THREADS``, else the CPUs that this process may use.

    Raises:
        InvalidInput: the variable is set to something else than a whole number of at least 1.
    """
    return load_settings({}).threads


def gpu_memory_limit() -> int | None:
    """Bytes of a GPU's memory that this process may take: ``PROVER_GPU_MEMORY_LIMIT`` in MiB; None without.

    Raises:
        InvalidInput: the variable is set to something else than a whole number of at least 1.
    """
    values, _ = _given([BY_NAME["gpu_memory_limit"]], {}, None, "")
    return values["gpu_memory_limit"] << 20 if values else None


def log_format() -> str | None:
    """``PROVER_LOG``: ``json`` or ``text``; None without.

    Raises:
        InvalidInput: the variable is set to something else.
    """
    return _given([BY_NAME["log"]], {}, None, "")[0].get("log")


def log_level() -> str:
    """``PROVER_LOG_LEVEL``: ``debug``, ``info``, ``warning`` or ``error``.

    Raises:
        InvalidInput: the variable is set to something else.
    """
    row = BY_NAME["log_level"]
    return str(_given([row], {}, None, "")[0].get("log_level", row.default))
