"""The table of settings: what each is called, how a value is parsed, what it is by default and what it means.

:data:`SETTINGS` is the one table: parsing, ``gpuprover config`` and docs/configuration.md are made from it.
A new setting is one row here, and one field of the class in :mod:`gpuprover.config` that takes it.
"""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from gpuprover.errors import InvalidInput, brief
from gpuprover.machine import available_cpus, cgroup_memory_limit, machine_memory

ENVIRONMENT_PREFIX = "PROVER_"

MAX_THREADS = 4096
PRIORITIES = 1000
"""The highest priority of a proof; its negative is the lowest."""
MEMORY_SHARE = 0.75
"""The share of the container's or the machine's memory that a prover's processes take unless told otherwise.
The rest is for others, and for mapped keys, which the kernel would read again and again if it had no room for
them."""
UNKNOWN_MEMORY = 4096
"""MiB; the limit where the machine does not say how much memory it has."""
MOST_WORKERS = 8
WORKER_BYTES = 112 << 20
"""Bytes that a worker holds of its own between proofs if it has imported Numba; a third of it where its
kernels come from images. Measured by hand."""


Parse = Callable[[Any, str], Any]


class Setting(NamedTuple):
    """A row of the table.

    Attributes:
        name: the argument's name, and the field's.
        parse: (text or a Python value, where it stands) -> the value, or InvalidInput.
        values: the values that may be given, for readers.
        unit: ``"MiB"``, ``"s"``, ...; empty where there is none.
        default: the value, or a function of the values of the rows above.
        default_text: the default as the docs give it, where it is not the same on every machine.
        meaning: a sentence without its full stop.
        own: whether it is an argument of a prover.
        service: whether it is an option of ``gpuprover serve``. A row that is neither is read from the
            environment where it is needed.
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
        "proofs that may wait; a further one waits or is refused, as its caller asked",
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
    Setting(
        "midnight",
        _switch,
        "`on`, `off`",
        False,
        "whether the service offers the routes of Midnight's proof server too",
        default_text="`off`",
        own=False,
        service=True,
    ),
    Setting(
        "midnight_parameters",
        _path,
        "a folder",
        None,
        "where Midnight's public parameters are (`bls_midnight_2pK`), and keys of the ledger's own circuits",
        default_text="`MIDNIGHT_PP`, else `midnight/zk-params` in `XDG_CACHE_HOME` or in `~/.cache`",
        own=False,
        service=True,
    ),
    Setting(
        "midnight_key_cache",
        partial(_whole, low=0),
        "at least 0",
        lambda given: max(16, given["memory_limit"] // 8),
        "keys that Midnight's clients have sent and that are kept, as files in the folder for temporary ones",
        "MiB",
        "an eighth of the memory limit; at least 16",
        own=False,
        service=True,
    ),
    Setting(
        "midnight_values",
        _switch,
        "`on`, `off`",
        False,
        "whether Midnight's clients are told values of a preimage that does not satisfy its circuit, in the "
        "words of the ledger; whoever reads the answers reads secrets then",
        default_text="`off`",
        own=False,
        service=True,
    ),
)

BY_NAME: Mapping[str, Setting] = MappingProxyType({setting.name: setting for setting in SETTINGS})
