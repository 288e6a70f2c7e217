"""``gpuprover serve``: a prover behind HTTP, until SIGTERM."""

from __future__ import annotations

import logging
from argparse import Namespace
from importlib.util import find_spec

from gpuprover.cli.context import Context
from gpuprover.config import SETTINGS, load_engine_settings, load_service_settings, unknown_variables
from gpuprover.errors import InvalidInput

log = logging.getLogger("gpuprover.service")

PACKAGES = ("fastapi", "uvicorn", "prometheus_client")


def run(args: Namespace, context: Context) -> int:
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise InvalidInput(
            f"serve: {' and '.join(missing)} not installed: pip install 'gpuprover[server]' has all it needs"
        )
    given = {row.name: getattr(args, row.name) for row in SETTINGS if row.own}
    engine = load_engine_settings(given, options=True)
    given = {row.name: getattr(args, row.name) for row in SETTINGS if row.service}
    settings = load_service_settings(given, engine)
    from gpuprover import cache, logs
    from gpuprover.engine import Prover
    from gpuprover.service import server
    from gpuprover.service.access import Tokens

    logs.configure("json" if context.console.json else None)
    for warning in unknown_variables().values():
        log.warning(warning)
    Tokens(settings.tokens_file)  # before anything is started
    listener = server.listen(settings.host, settings.port)
    try:
        with cache.warnings_to(None):  # a line of the log
            prover = Prover(engine)
            try:
                url = server.url_of(listener)
                text = f"gpuprover serves {url}, circuits of {engine.circuit_keys_path}; Ctrl-C ends it"
                return server.serve(
                    prover,
                    settings,
                    listener,
                    started=lambda: context.console.answer({"url": url}, text),
                )
            finally:
                prover.close(0.0)
    finally:
        listener.close()
