"""Settings: by argument, else from ``PROVER_*`` variables, else from the machine.

:data:`SETTINGS` is the one table: parsing, ``gpuprover config`` and docs/configuration.md are made from it.
What a single command needs is in :class:`Settings`, what a prover needs in :class:`EngineSettings`, what the
HTTP service needs besides in :class:`ServiceSettings`; all remember where each value came from. A new setting
is one row, and one field of the class that takes it.
"""

from __future__ import annotations

import difflib
import math
import operator
import os
import platform
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from gpuprover.errors import InvalidInput, brief

ENVIRONMENT_PREFIX = "PROVER_"

MAX_THREADS = 4096
PRIORITIES = 1000
"""Of a proof, of either sign."""
MEMORY_SHARE = 0.75
"""Of the container's or the machine's memory, what a prover's processes take unless told otherwise. The rest
is for others, and for mapped keys, which the kernel would read again and again if it had no room for them."""
UNKNOWN_MEMORY = 4096
"""MiB; the limit where the machine does not say how much memory it has."""
MOST_WORKERS = 8
WORKER_BYTES = 112 << 20
"""What a worker holds of its own between proofs if it has imported Numba; a third of it where its kernels
come from images. Measured by hand."""


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
        sources: as of :class:`EngineSettings`.
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
    sources: Mapping[str, str]

    def as_dict(self) -> dict[str, Any]:
        """Plain values by name, as JSON has them; without the sources."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self) if f.name != "sources"}


Parse = Callable[[Any, str], Any]


@dataclass(frozen=True)
class Setting:
    """A row of the table.

    Attributes:
        name: of the argument, and of the field.
        parse: (text or a Python value, where it stands) -> the value, or InvalidInput.
        values: what may be given, for readers.
        unit: ``"MiB"``, ``"s"``, ...; empty for what has none.
        default: the value, or how it follows from those of the rows above.
        default_text: how the docs say it, where it is not the same on every machine.
        meaning: a sentence without its full stop.
        own: it is an argument of a prover. Others are read from the environment where they are needed, or are
        service: options of ``gpuprover serve``.
    """

    name: str
    parse: Parse
    values: str
    default: Any
    meaning: str
    unit: str = ""
    default_text: str = ""
    own: bool = True
    service: bool = False

    @property
    def variable(self) -> str:
        return ENVIRONMENT_PREFIX + self.name.upper()


def whole_number(text: str, where: str, *, low: int = 1, high: int = 1 << 40) -> int:
    """``text`` as an integer in [low, high].

    Raises:
        InvalidInput: it is not; the message names ``where``.
    """
    stripped = text.strip()
    if (
        not (stripped.isascii() and stripped.isdigit() and len(stripped) <= 20)
        or not low <= int(stripped) <= high
    ):
        raise InvalidInput(f"{where}: expected a whole number from {low} to {high}, found {text[:40]!r}")
    return int(stripped)


def seconds(text: str, where: str) -> float:
    """``text`` as a positive number of seconds.

    Raises:
        InvalidInput: it is not.
    """
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1e9:
        raise InvalidInput(f"{where}: expected a positive number of seconds, found {text[:40]!r}")
    return value


def _whole(value: Any, where: str, low: int = 1, high: int = 1 << 40) -> int:
    if not isinstance(value, str) and not isinstance(value, bool):
        try:
            value = str(operator.index(value))
        except (TypeError, ValueError):  # no number, or one of thousands of digits
            value = brief(value)
    return whole_number(str(value), where, low=low, high=high)


def _number(value: Any, where: str, low: float, high: float = 1e9, above: bool = False) -> float:
    """A number from ``low`` to ``high``; with ``above``, ``low`` itself is too low."""
    found = math.nan
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        try:
            found = float(value)
        except (ValueError, OverflowError):
            found = math.nan
    if not low <= found <= high or (above and found == low):
        bound = f"above {low:g} and up to" if above else f"from {low:g} to"
        raise InvalidInput(f"{where}: expected a number {bound} {high:g}, found {brief(value)!r}")
    return found


_positive = partial(_number, low=0, above=True)


def _device(value: Any, where: str) -> str:
    name = value.strip().lower() if isinstance(value, str) else ""
    if not name:
        found = "nothing" if isinstance(value, str) else brief(value)
        raise InvalidInput(f"{where}: expected auto, cpu or cuda, found {found}")
    return name


def _choice(value: Any, where: str, names: tuple[str, ...]) -> str:
    name = brief(value).strip().lower()
    if name not in names:
        raise InvalidInput(f"{where}: expected {_or(names)}, found {brief(value)!r}")
    return name


def _or(names: tuple[str, ...]) -> str:
    return " or ".join([", ".join(names[:-1]), names[-1]])


def _names(value: Any, where: str) -> tuple[str, ...]:
    """Names, without repetitions, from ``a,b`` or from an iterable."""
    parts = value.split(",") if isinstance(value, str) else value
    try:
        parts = None if isinstance(parts, bytes) else list(parts)
    except (TypeError, NotImplementedError):  # as arrays and views of some shapes say
        parts = None
    if parts is None:
        raise InvalidInput(f"{where}: expected names, found {brief(value)}")
    names = []
    for part in parts:
        if not isinstance(part, str):
            raise InvalidInput(f"{where}: expected names, found {brief(part)}")
        names += [part.strip()] if part.strip() else []
    return tuple(dict.fromkeys(names))


def _path(value: Any, where: str) -> Path:
    if not isinstance(value, str | os.PathLike) or not os.fspath(value) or "\0" in str(value):
        found = repr(value) if isinstance(value, str | os.PathLike) else brief(value)
        raise InvalidInput(f"{where}: expected a path, found {found}")
    return Path(value).expanduser()


def _host(value: Any, where: str) -> str:
    name = value.strip() if isinstance(value, str) else ""
    if not name or not name.isprintable() or " " in name or len(name) > 255:
        raise InvalidInput(f"{where}: expected an address or a host's name, found {brief(value)!r}")
    return name


_SWITCH = {"on": True, "true": True, "yes": True, "1": True} | {
    "off": False,
    "false": False,
    "no": False,
    "0": False,
}


def _switch(value: Any, where: str) -> bool:
    found = _SWITCH.get(brief(value).strip().lower())
    if found is None:
        raise InvalidInput(f"{where}: expected on or off, found {brief(value)!r}")
    return found


def _all_memory() -> int:
    """MiB that the container grants, or that the machine has."""
    known = [amount for amount in (cgroup_memory_limit(), machine_memory()[0]) if amount is not None]
    return min(known) >> 20 if known else UNKNOWN_MEMORY


def _default_workers(given: Mapping[str, Any]) -> int:
    by_memory = (given["memory_limit"] << 20) // 4 // WORKER_BYTES
    workers: int = min(given["threads"], MOST_WORKERS, by_memory)
    least: int = given["min_workers"]
    return max(1, workers, least)


SETTINGS: tuple[Setting, ...] = (
    Setting(
        "circuit_keys_path",
        _path,
        "a folder",
        Path("circuit-keys"),
        default_text="`circuit-keys`",
        meaning="where circuits are: `NAME.zkey`, with `NAME.wasm` and `NAME.vkey.json` beside it, or all in "
        "`NAME/`",
    ),
    Setting(
        "preload_circuits",
        _names,
        "names, separated by commas",
        (),
        "circuits whose keys are loaded at the start and stay loaded",
        default_text="none",
    ),
    Setting(
        "device",
        _device,
        "`auto`, `cpu`, `cuda` or `cuda:N`",
        "auto",
        "what proves; `auto` takes a GPU for circuits that gain from one",
    ),
    Setting(
        "threads",
        partial(_whole, high=MAX_THREADS),
        f"1 to {MAX_THREADS}",
        lambda given: available_cpus(),
        "threads that work at once, of all workers together",
        default_text="the CPUs that the process may use, by affinity and by the container's quota",
    ),
    Setting(
        "memory_limit",
        _whole,
        "at least 1",
        lambda given: max(1, int(MEMORY_SHARE * _all_memory())),
        "memory that a command, or a prover with all its processes, stays within, mapped keys aside",
        "MiB",
        f"{MEMORY_SHARE * 100:.0f} % of the container's memory, or else of the machine's; "
        "for a single command none",
    ),
    Setting(
        "memory_watermark",
        partial(_number, low=0.1, high=1),
        "0.1 to 1",
        0.73,
        "share of the memory limit from which on new proofs wait and caches shrink",
    ),
    Setting(
        "policy",
        partial(_choice, names=("eager", "lazy", "off")),
        "`eager`, `lazy`, `off`",
        lambda given: "eager" if given["preload_circuits"] else "lazy",
        "when workers start: at once, with the first proof, or never, for a node that only verifies",
        default_text="`eager` if circuits are preloaded, else `lazy`",
    ),
    Setting(
        "verifier",
        partial(_choice, names=("process", "inline")),
        "`process`, `inline`",
        "process",
        "whether verification has a process of its own, or runs in the caller's",
    ),
    Setting(
        "verification_timeout",
        _positive,
        "above 0",
        120.0,
        "for a verification to be answered, the start of its process and of its code included",
        "s",
    ),
    Setting(
        "min_workers",
        partial(_whole, low=0, high=MAX_THREADS),
        f"0 to {MAX_THREADS}",
        lambda given: min(1, given.get("max_workers", 1)),
        "workers that stay when there is nothing to do",
        default_text="1",
    ),
    Setting(
        "max_workers",
        partial(_whole, low=0, high=MAX_THREADS),
        f"0 to {MAX_THREADS}",
        _default_workers,
        "workers for the CPU at most; 0 proves in the calling process",
        default_text=f"as many as threads, at most {MOST_WORKERS}, and a quarter of the memory limit over "
        f"{WORKER_BYTES >> 20} MiB",
    ),
    Setting(
        "max_proofs_per_worker", _whole, "at least 1", 500, "a worker is replaced after this many proofs"
    ),
    Setting(
        "worker_memory",
        _whole,
        "at least 1",
        lambda given: max(512, given["memory_limit"] // 2 // max(1, given["max_workers"])),
        "a worker that holds more than this of its own between two proofs is replaced",
        "MiB",
        "half of the memory limit, divided by the workers; at least 512",
    ),
    Setting(
        "queue_limit",
        _whole,
        "at least 1",
        100,
        "proofs that may wait; one more is refused or held up, as its caller wants",
    ),
    Setting(
        "tenant_queue_limit",
        _whole,
        "at least 1",
        lambda given: (given["queue_limit"] + 1) // 2,
        "of them, those of one tenant: for the service, of one token or address",
        default_text="half of `queue_limit`",
    ),
    Setting("job_timeout", _positive, "above 0", 3600.0, "from submission to the end of a proof", "s"),
    Setting(
        "overtaking_limit",
        partial(_number, low=0),
        "at least 0, at most `job_timeout`",
        lambda given: min(60.0, given["job_timeout"] / 10),
        "a proof that has waited for so long has every second turn, whatever priorities others have",
        "s",
        "60, or a tenth of `job_timeout` if that is less",
    ),
    Setting(
        "admission_wait",
        partial(_number, low=0),
        "at least 0",
        5.0,
        "how long new proofs wait near the memory limit before it is looked at again",
        "s",
    ),
    Setting(
        "retry_delay",
        partial(_number, low=0),
        "at least 0",
        2.0,
        "pause before a proof that ran out of memory is tried with less",
        "s",
    ),
    Setting(
        "init_timeout", _positive, "above 0", 300.0, "for a process to become ready, compiling included", "s"
    ),
    Setting(
        "load_timeout",
        _positive,
        "above 0",
        600.0,
        "for circuits to be loaded: how long `create_prover` waits until it is ready, and `load` unless told",
        "s",
    ),
    Setting(
        "worker_wait",
        partial(_number, low=0),
        "at least 0",
        300.0,
        "while workers are killed, or the system starts none, proofs wait for so long before they fail; a "
        "worker that cannot start by a fault of its own is told after four tries",
        "s",
    ),
    Setting(
        "heartbeat_timeout",
        _positive,
        "above 0",
        30.0,
        "a process that is silent for longer is replaced",
        "s",
    ),
    Setting(
        "stall_timeout",
        _positive,
        "above 0",
        120.0,
        "a worker that neither computes nor reports for longer, while it has a proof, is replaced",
        "s",
    ),
    Setting(
        "idle_timeout",
        _positive,
        "above 0",
        60.0,
        "workers beyond `min_workers` end after so long without a proof",
        "s",
    ),
    Setting(
        "grace_period",
        partial(_number, low=0),
        "at least 0",
        30.0,
        "for running proofs to end when the prover is closed, before they are aborted",
        "s",
    ),
    Setting(
        "key_cache",
        partial(_whole, low=0),
        "at least 0",
        lambda given: max(1, given["memory_limit"] // 2),
        "keys that each process keeps open, by the bytes of their files; preloaded ones count, and stay",
        "MiB",
        "half of the memory limit",
    ),
    Setting(
        "proof_cache",
        partial(_whole, low=0),
        "at least 0",
        0,
        "proofs that are kept, to answer the same witness again with the same proof",
        "MiB",
        "0: off",
    ),
    Setting(
        "verification_cache",
        partial(_whole, low=0),
        "at least 0",
        0,
        "answers of the verifier that are kept",
        "MiB",
        "0: off",
    ),
    Setting(
        "cache_ttl", _positive, "above 0", 3600.0, "age at which kept proofs and answers are forgotten", "s"
    ),
    Setting(
        "leak_alarm", _positive, "above 0", 100.0, "growth of memory that is logged as a leak", "MB a minute"
    ),
    Setting(
        "log",
        partial(_choice, names=("json", "text")),
        "`json`, `text`",
        None,
        "how the service writes its log to standard error",
        default_text="`text` on a terminal, else `json`",
        own=False,
    ),
    Setting(
        "log_level",
        partial(_choice, names=("debug", "info", "warning", "error")),
        "`debug`, `info`, `warning`, `error`",
        "info",
        "what of it is written; with `debug` probes, scrapes and polls of a status page too",
        own=False,
    ),
    Setting(
        "gpu_memory_limit",
        _whole,
        "at least 1",
        None,
        "memory of each GPU that a process may take",
        "MiB",
        "95 % of what is free",
        own=False,
    ),
    Setting(
        "cpu_path",
        partial(_choice, names=("ifma", "portable")),
        "`ifma`, `portable`",
        None,
        "which code the CPU runs: with AVX-512 IFMA or without",
        default_text="by the CPU's features",
        own=False,
    ),
    Setting(
        "host",
        _host,
        "an address",
        "127.0.0.1",
        "where the service listens; `0.0.0.0` and `::` are all interfaces",
        own=False,
        service=True,
    ),
    Setting(
        "port",
        partial(_whole, low=0, high=65535),
        "0 to 65535",
        8080,
        "port of the service; 0 takes any that is free",
        own=False,
        service=True,
    ),
    Setting(
        "tokens_file",
        _path,
        "a file",
        None,
        "bearer tokens that the service accepts, one a line; read again when it changes",
        default_text="none: no token is needed",
        own=False,
        service=True,
    ),
    Setting(
        "tenant_share",
        partial(_number, low=0.01, high=1),
        "0.01 to 1",
        0.5,
        "share that one client, which is a token or, without tokens, an address, may have of what all share: "
        "`body_memory` and `queue_limit`; of several, each has less, and something stays free. 1 for a "
        "service with one client, or behind a proxy without tokens",
        own=False,
        service=True,
    ),
    Setting(
        "body_memory",
        _whole,
        "at least 1",
        lambda given: max(16, given["memory_limit"] // 4),
        "memory for the bodies of requests that are open and for witnesses that wait, all together",
        "MiB",
        "a quarter of the memory limit; at least 16",
        own=False,
        service=True,
    ),
    Setting(
        "body_limit",
        _whole,
        "at least 1",
        lambda given: max(1, int(given["body_memory"] * given["tenant_share"])),
        "largest body of a request; of JSON 32 MiB at most",
        "MiB",
        "`tenant_share` of `body_memory`",
        own=False,
        service=True,
    ),
    Setting(
        "json_memory",
        _whole,
        "at least 1",
        lambda given: min(128, given["body_limit"]),
        "memory that JSON of one request may take once it is parsed, by the count of its values",
        "MiB",
        "128, or `body_limit` if that is less",
        own=False,
        service=True,
    ),
    Setting(
        "connection_limit",
        _whole,
        "at least 1",
        4096,
        "connections at once; for one more, the client with the most loses one. Fewer where the system "
        "allows fewer open files",
        own=False,
        service=True,
    ),
    Setting(
        "head_timeout",
        _positive,
        "above 0",
        20.0,
        "from the first byte of a request, or from the beginning of a connection, to the end of the headers",
        "s",
        own=False,
        service=True,
    ),
    Setting(
        "keep_alive",
        _positive,
        "above 0",
        65.0,
        "how long a connection may be without a request",
        "s",
        own=False,
        service=True,
    ),
    Setting(
        "pause_limit",
        _positive,
        "above 0",
        30.0,
        "how long a client may pause while it sends a body or reads an answer",
        "s",
        own=False,
        service=True,
    ),
    Setting(
        "least_rate",
        partial(_whole, high=1 << 20),
        "at least 1",
        16,
        "rate at which a client has to send a body and to read an answer, such pauses aside",
        "KiB/s",
        own=False,
        service=True,
    ),
    Setting(
        "priority_limit",
        partial(_whole, low=0, high=PRIORITIES),
        f"0 to {PRIORITIES}",
        0,
        "highest `priority` that a request may ask for, unless the line of its token in the file of tokens "
        "says otherwise",
        own=False,
        service=True,
    ),
    Setting(
        "result_ttl",
        _positive,
        "above 0",
        3600.0,
        "how long the service keeps a result, from the end of its proof",
        "s",
        own=False,
        service=True,
    ),
    Setting(
        "result_limit",
        _whole,
        "at least 1",
        10_000,
        "results that the service keeps at most; the oldest go first",
        own=False,
        service=True,
    ),
    Setting(
        "rapidsnark",
        _switch,
        "`on`, `off`",
        False,
        "whether the service offers the routes of rapidsnark's server too",
        default_text="`off`",
        own=False,
        service=True,
    ),
)

_BY_NAME: Mapping[str, Setting] = MappingProxyType({setting.name: setting for setting in SETTINGS})


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
    rows = [_BY_NAME[name] for name in ("device", "threads", "memory_limit")]
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
        environment: by default the process's.
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
    values, _ = _given([_BY_NAME["gpu_memory_limit"]], {}, None, "")
    return values["gpu_memory_limit"] << 20 if values else None


def log_format() -> str | None:
    """``PROVER_LOG``: ``json`` or ``text``; None without.

    Raises:
        InvalidInput: the variable is set to something else.
    """
    return _given([_BY_NAME["log"]], {}, None, "")[0].get("log")


def log_level() -> str:
    """``PROVER_LOG_LEVEL``: ``debug``, ``info``, ``warning`` or ``error``.

    Raises:
        InvalidInput: the variable is set to something else.
    """
    row = _BY_NAME["log_level"]
    return str(_given([row], {}, None, "")[0].get("log_level", row.default))


def machine_memory() -> tuple[int | None, int | None]:
    """Bytes of memory that the machine has, and that are available now; None where it does not say."""
    found: dict[str, int] = {}
    for line in (_read(Path("/proc/meminfo")) or "").splitlines():
        words = line.split()
        if len(words) == 3 and words[1].isdigit():
            found[words[0]] = int(words[1]) * 1024
    total = found.get("MemTotal:")
    if total is None and hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return total, found.get("MemAvailable:")


def available_cpus() -> int:
    """CPUs in this process's affinity mask, or fewer where a container's CPU quota is lower; at least 1."""
    if hasattr(os, "sched_getaffinity"):
        cpus = len(os.sched_getaffinity(0))
    else:
        cpus = os.cpu_count() or 1
    quota = cgroup_cpu_quota()
    if quota is not None:
        cpus = min(cpus, max(1, int(quota + 0.5)))
    return max(1, cpus)


def processor_name() -> str:
    """The processor's model as the system calls it."""
    for line in (_read(Path("/proc/cpuinfo")) or "").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return None


def _cgroup_folders(root: Path, process: Path, controller: str) -> list[Path]:
    """This process's cgroup folder and its parents, innermost first, for v2 and for v1's ``controller``."""
    folders: list[Path] = []
    for line in (_read(process / "cgroup") or "").splitlines():
        parts = line.split(":", 2)
        if len(parts) != 3:
            continue
        if parts[1] == "":
            base = root
        elif controller in parts[1].split(","):
            base = root / controller
        else:
            continue
        inner = base / parts[2].lstrip("/")
        folders += [inner, *(p for p in inner.parents if p == base or base in p.parents)]
    return folders


def cgroup_cpu_quota(root: Path = Path("/sys/fs/cgroup"), process: Path = Path("/proc/self")) -> float | None:
    """CPUs that the tightest enclosing control group grants (2.0 is two whole CPUs); None where none does."""
    quotas = [_cgroup_quota(folder) for folder in _cgroup_folders(root, process, "cpu")]
    return min((quota for quota in quotas if quota is not None), default=None)


@dataclass(frozen=True)
class CgroupThrottling:
    """What a control group's CPU quota has cost so far.

    Attributes:
        periods: of the quota, in which something ran.
        throttled: of them, those in which the quota was used up.
        seconds: for which threads waited for the next one.
    """

    periods: int
    throttled: int
    seconds: float


def cgroup_throttling(
    root: Path = Path("/sys/fs/cgroup"), process: Path = Path("/proc/self")
) -> CgroupThrottling | None:
    """Of the enclosing control group with the tightest quota; None where none has one."""
    found = []
    for folder in _cgroup_folders(root, process, "cpu"):
        quota = _cgroup_quota(folder)
        lines = (line.split() for line in (_read(folder / "cpu.stat") or "").splitlines())
        stat = {words[0]: int(words[1]) for words in lines if len(words) == 2 and words[1].isdigit()}
        if quota is not None and "nr_periods" in stat:
            # Microseconds in v2, nanoseconds in v1.
            waited = stat.get("throttled_usec", 0) / 1e6 + stat.get("throttled_time", 0) / 1e9
            found.append((quota, CgroupThrottling(stat["nr_periods"], stat.get("nr_throttled", 0), waited)))
    return min(found, key=operator.itemgetter(0))[1] if found else None


def _cgroup_quota(folder: Path) -> float | None:
    """CPUs that a control group grants."""
    v2 = (_read(folder / "cpu.max") or "").split()
    v1 = [_read(folder / "cpu.cfs_quota_us") or "", _read(folder / "cpu.cfs_period_us") or ""]
    for pair in (v2, v1):
        if len(pair) == 2 and pair[0].isdigit() and pair[1].isdigit() and int(pair[0]) and int(pair[1]):
            return int(pair[0]) / int(pair[1])
    return None


@dataclass(frozen=True)
class CgroupMemory:
    """Bytes that a control group may hold, and holds now but for cached files, which the kernel drops."""

    limit: int
    used: int


def cgroup_memory(
    root: Path = Path("/sys/fs/cgroup"), process: Path = Path("/proc/self")
) -> CgroupMemory | None:
    """The enclosing control group with the least room; None where none has a limit."""
    found = []
    for folder in _cgroup_folders(root, process, "memory"):
        limit = min(_cgroup_memory_limits(folder), default=None)
        usage = _read(folder / "memory.current") or _read(folder / "memory.usage_in_bytes") or ""
        if limit is None or not usage.isdigit():
            continue
        # v1 counts the groups below under names of their own.
        lines = (line.split() for line in (_read(folder / "memory.stat") or "").splitlines())
        stat = {words[0]: int(words[1]) for words in lines if len(words) == 2 and words[1].isdigit()}
        files = sum(stat.get(f"total_{name}", stat.get(name, 0)) for name in ("active_file", "inactive_file"))
        found.append(CgroupMemory(limit, max(0, int(usage) - files)))
    return min(found, key=lambda group: group.limit - group.used, default=None)


def cgroup_throttled(root: Path = Path("/sys/fs/cgroup"), process: Path = Path("/proc/self")) -> float:
    """Seconds for which CPU quotas have held this process's control groups up; 0 where there are none."""
    worst = 0.0
    for folder in _cgroup_folders(root, process, "cpu"):
        for line in (_read(folder / "cpu.stat") or "").splitlines():
            name, _, value = line.partition(" ")
            # v2 counts microseconds, v1 nanoseconds.
            unit = {"throttled_usec": 1e-6, "throttled_time": 1e-9}.get(name)
            if unit is not None and value.isdigit():
                worst = max(worst, int(value) * unit)
    return worst


def cgroup_memory_limit(
    root: Path = Path("/sys/fs/cgroup"), process: Path = Path("/proc/self")
) -> int | None:
    """Bytes that the tightest enclosing control group grants; None where none does."""
    folders = _cgroup_folders(root, process, "memory")
    return min((limit for folder in folders for limit in _cgroup_memory_limits(folder)), default=None)


def _cgroup_memory_limits(folder: Path) -> list[int]:
    texts = [_read(folder / name) or "" for name in ("memory.max", "memory.high", "memory.limit_in_bytes")]
    # v1 writes "no limit" as a number near 2^63.
    return [int(text) for text in texts if text.isdigit() and int(text) < 1 << 60]
