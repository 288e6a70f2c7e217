"""``gpuprover serve``: a prover behind HTTP, until SIGTERM; with Midnight's routes, if they are asked for."""

from __future__ import annotations

import logging
from argparse import Namespace
from importlib.util import find_spec

from gpuprover.cli.context import Context
from gpuprover.config import (
    EngineSettings,
    ServiceSettings,
    load_engine_settings,
    load_service_settings,
    unknown_variables,
)
from gpuprover.engine.directory import CircuitDirectory
from gpuprover.errors import InvalidInput
from gpuprover.settings import SETTINGS

log = logging.getLogger("gpuprover.service")

PACKAGES = ("fastapi", "uvicorn", "prometheus_client")


def require_packages() -> None:
    """Raises InvalidInput if a service cannot be had for want of a package."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise InvalidInput(
            f"serve: {' and '.join(missing)} not installed: pip install 'gpuprover[server]' has all it needs"
        )


def run(args: Namespace, context: Context) -> int:
    require_packages()
    given = {row.name: getattr(args, row.name) for row in SETTINGS if row.own}
    engine = load_engine_settings(given, options=True)
    given = {row.name: getattr(args, row.name) for row in SETTINGS if row.service}
    return serve(engine, load_service_settings(given, engine), context)


def serve(engine: EngineSettings, settings: ServiceSettings, context: Context) -> int:
    """Serves with these settings -> the exit code.

    Raises:
        ProverError: what is wrong before it listens.
    """
    from gpuprover import folders, logs
    from gpuprover.engine import Prover
    from gpuprover.service import server
    from gpuprover.service.access import Tokens

    form = logs.configure("json" if context.console.json else None, background=True)
    try:
        for warning in unknown_variables().values():
            log.warning(warning)
        Tokens(settings.tokens_file)  # before anything is started
        folder = engine.circuit_keys_path
        circuits = CircuitDirectory(folder).names()
        if settings.midnight:
            from gpuprover.service.midnight.parameters import use_parameters

            where, sizes = use_parameters(settings.midnight_parameters)
            log.info("Midnight's parameters in %s are for circuits of at most 2^%d rows", where, max(sizes))
        listener = server.listen(settings.host, settings.port)
        try:
            with folders.warnings_to(None):  # a line of the log
                prover = Prover(engine)
                try:
                    url = server.url_of(listener)
                    logs.catch()

                    def started() -> None:
                        log.info("gpuprover serves %s: %d circuits of %s", url, len(circuits), folder)
                        if not circuits and not settings.midnight:
                            log.warning("no circuits are in %s: proofs are refused until there are", folder)
                        _answer(context, {"url": url}, f"gpuprover serves {url}; Ctrl-C ends it", form)

                    return server.serve(prover, settings, listener, started=started)
                finally:
                    prover.close(0.0)
        finally:
            listener.close()
    finally:
        logs.flush()


def _answer(context: Context, record: dict[str, str], text: str, form: str) -> None:
    """To standard output, as text only where the log is text too: both often end in one file.

    A full disk there is no reason not to serve.
    """
    try:
        if context.console.json or form == "text":
            context.console.answer(record, text)
    except OSError as error:
        log.warning("standard output cannot be written: %s", error.strerror)
