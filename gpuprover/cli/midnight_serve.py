"""``gpuprover midnight serve`` and ``healthcheck``: the proof server, with the flags, variables and port of
the network's own."""

from __future__ import annotations

import os
import tempfile
from argparse import Namespace
from pathlib import Path
from typing import Any

from gpuprover.cli.context import Context
from gpuprover.config import load_engine_settings, load_service_settings
from gpuprover.errors import EXIT_OK, EXIT_RESOURCES, InvalidInput
from gpuprover.settings import BY_NAME, SETTINGS, seconds, whole_number

PORT = 6300
UNLIMITED = 1_000_000
"""Proofs that may wait where no number is set: memory is the limit then."""
PREFIX = "MIDNIGHT_PROOF_SERVER_"
HEALTH_SECONDS = 4.0


def run(args: Namespace, context: Context) -> int:
    """Serves until SIGTERM."""
    from gpuprover.cli.serve import require_packages, serve

    require_packages()

    given = {row.name: getattr(args, row.name) for row in SETTINGS if row.own or row.service}
    given |= {name: value for name, value in _own(args).items() if given.get(name) is None}
    given["midnight"] = "on"
    with tempfile.TemporaryDirectory(prefix="gpuprover-circuits-") as empty:
        # Circuits of a folder are an offer besides: without one it is no fault.
        default = Path(str(BY_NAME["circuit_keys_path"].default))
        if not _is_set("circuit_keys_path", given) and not default.is_dir():
            given["circuit_keys_path"] = empty
        own = {row.name: given[row.name] for row in SETTINGS if row.own}
        engine = load_engine_settings(own, options=True)
        others = {row.name: given[row.name] for row in SETTINGS if row.service}
        return serve(engine, load_service_settings(others, engine), context)


def _is_set(name: str, given: dict[str, Any]) -> bool:
    return given.get(name) is not None or bool(os.environ.get(BY_NAME[name].variable, "").strip())


def _own(args: Namespace) -> dict[str, Any]:
    """Settings by what the network's server calls them; by its variables, unless ours are set."""
    found: dict[str, Any] = {}

    def take(option: str, setting: str, default: Any = None) -> str | None:
        value = getattr(args, option, None)
        name = f"--{option.replace('_', '-')}"
        if value is None:
            name = PREFIX + option.upper()
            value = os.environ.get(name, "").strip() or None
            if value is None and _is_set(setting, {}):
                return None
        if value is None and default is not None:
            found[setting] = default
        elif value is not None:
            found[setting] = value
            return name
        return None

    take("port", "port", PORT)
    if (name := take("job_capacity", "queue_limit", UNLIMITED)) is not None:
        capacity = whole_number(str(found["queue_limit"]), name, low=0)
        found["queue_limit"] = min(capacity, UNLIMITED) or UNLIMITED
    if (name := take("num_workers", "max_workers")) is not None:
        found["max_workers"] = whole_number(str(found["max_workers"]), name)
        found["min_workers"] = min(1, found["max_workers"])
    if (name := take("job_timeout", "job_timeout", 600.0)) is not None:
        found["job_timeout"] = seconds(str(found["job_timeout"]), name)
    # Behind a container's network all clients have one address.
    if not _is_set("tenant_share", {}):
        found["tenant_share"] = 1
    if args.verbose or os.environ.get(f"{PREFIX}VERBOSE", "").lower() in ("1", "true"):
        os.environ.setdefault("PROVER_LOG_LEVEL", "debug")
    return found


def healthcheck(args: Namespace, context: Context) -> int:
    """Exit code 0 if the proof server is ready, 3 if not: for images without a client of HTTP."""
    from urllib.error import HTTPError, URLError
    from urllib.request import ProxyHandler, build_opener

    port = os.environ.get(f"{PREFIX}PORT") or os.environ.get("PROVER_PORT") or str(PORT)
    url = args.url or f"http://127.0.0.1:{whole_number(port, f'{PREFIX}PORT', low=1, high=65535)}/ready"
    if not url.startswith(("http://", "https://")):
        raise InvalidInput(f"--url: expected http://HOST:PORT/ready, found {url[:80]!r}")
    try:
        with build_opener(ProxyHandler({})).open(url, timeout=HEALTH_SECONDS) as answer:
            status, why = answer.status, ""
    except HTTPError as error:
        status, why = error.code, error.read(400).decode("utf-8", "replace")
    except (URLError, OSError, ValueError) as error:
        status, why = 0, type(getattr(error, "reason", error)).__name__
    ready = status == 200
    text = "ready" if ready else f"not ready: {f'{status} {why}' if status else why}"
    context.console.answer({"ready": ready, "status": status}, text)
    return EXIT_OK if ready else EXIT_RESOURCES
