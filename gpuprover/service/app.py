"""The application: routes, what every request passes, errors as problem documents, OpenAPI."""

from __future__ import annotations

import copy
import re
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException

from gpuprover.config import ServiceSettings
from gpuprover.engine import Prover
from gpuprover.errors import ProverError
from gpuprover.service import models, page, rapidsnark, routes
from gpuprover.service.core import MakeMetrics, Service
from gpuprover.service.metrics import Metrics
from gpuprover.service.problems import MEDIA_TYPE, Problem, of_status
from gpuprover.service.surroundings import KIND, Surroundings, current
from gpuprover.systems.system import names, system_named
from gpuprover.version import VERSION

DESCRIPTION = "Zero-knowledge proofs for circom's circuits: Groth16, PLONK and FFLONK, with snarkjs's keys."


def create_app(
    prover: Prover,
    settings: ServiceSettings,
    metrics: MakeMetrics = Metrics,
) -> FastAPI:
    """The service of a prover, for any ASGI server; ``app.state.service`` is its :class:`Service`.

    The prover stays its owner's to close.

    Args:
        metrics: makes what ``/metrics`` shows.

    Raises:
        InvalidInput: the file of tokens cannot be used.
    """
    service = Service(prover, settings)
    midnight = None
    if settings.midnight:
        # Nobody else needs what this reads.
        from gpuprover.service.midnight.offer import Midnight

        midnight = Midnight(service)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.start()
        if midnight is not None:
            await midnight.server.start()
        yield
        if midnight is not None:
            await midnight.server.stop()
        await service.stop()

    app = FastAPI(
        title="gpuprover",
        version=VERSION,
        description=DESCRIPTION,
        docs_url=None,  # their pages load scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
        redirect_slashes=False,
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.service = service
    if midnight is not None:
        # Before others: two of its paths are theirs, too.
        midnight.include(app)
    app.include_router(routes.open_router)
    app.include_router(routes.router)
    if settings.rapidsnark:
        app.state.slot = rapidsnark.Slot()
        app.include_router(rapidsnark.router)
    app.include_router(page.router)
    document = _openapi(app)
    methods = {path: [name.upper() for name in found] for path, found in document["paths"].items()}
    methods |= {"/": ["GET"], "/openapi.json": ["GET"]}
    if midnight is not None:
        methods |= midnight.methods
    service.metrics = metrics(prover, [f"{name} {path}" for path, names in methods.items() for name in names])
    app.add_middleware(Surroundings, observe=service.metrics.answered)
    if midnight is not None:
        midnight.surround(app)
    _answer_errors(app, service, methods, midnight.concealed if midnight is not None else ())
    app.openapi = lambda: _with_security(document, service.tokens.required)  # type: ignore[method-assign]
    return app


def _answer_errors(
    app: FastAPI, service: Service, methods: dict[str, list[str]], concealed: Collection[str]
) -> None:
    """``methods``: of each path, for the ``Allow`` of a 405; ``concealed``: paths that have a 404 instead."""
    allowed = [(_pattern(path), names) for path, names in methods.items()]
    unknown = [_pattern(path) for path in concealed]

    async def answer(request: Request, problem: Problem) -> Response:
        request.scope[KIND] = problem.kind
        context = current.get()
        body = problem.body(context.request_id if context is not None else None)
        return Response(body, problem.status, problem.headers, MEDIA_TYPE)

    async def refused(request: Request, error: Exception) -> Response:
        if isinstance(error, Problem):
            return await answer(request, error)
        if isinstance(error, ProverError):
            service.tell(error)
            return await answer(request, service.problem(error))
        if isinstance(error, RequestValidationError):
            first = error.errors()[0]
            where = " ".join(str(part)[:40] for part in first["loc"])
            return await answer(request, Problem(400, "InvalidInput", f"{where}: {first['msg']}"))
        assert isinstance(error, HTTPException)
        headers = dict(error.headers or {})
        if error.status_code == 405 and any(path.fullmatch(request.url.path) for path in unknown):
            return await answer(request, of_status(404))
        if error.status_code == 405:
            found = (names for path, names in allowed if path.fullmatch(request.url.path))
            allow = next(found, [])
            headers["Allow"] = ", ".join([*allow, *(["HEAD"] if "GET" in allow else [])])
        return await answer(request, of_status(error.status_code, headers))

    for kind in (Problem, ProverError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, refused)


def _pattern(path: str) -> re.Pattern[str]:
    """The paths that a template stands for."""
    return re.compile(re.sub(r"{[^}]*}", "[^/]+", path))


def _openapi(app: FastAPI) -> dict[str, Any]:
    """The document that follows from the routes, with the models of bodies that they read themselves."""
    schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    _, found = models_json_schema(
        [(model, "validation") for model in models.BESIDES], ref_template="#/components/schemas/{model}"
    )
    components = schema["components"]["schemas"]
    _describe_proofs(components)
    components.update(found["$defs"])
    for path in schema["paths"].values():
        for operation in path.values():
            # Parameters that are no good are a 400 here.
            if "HTTPValidationError" in str(operation["responses"].get("422")):
                del operation["responses"]["422"]
                operation["responses"].setdefault("400", routes.problems(400)[400])
    for name in ("HTTPValidationError", "ValidationError"):
        components.pop(name, None)
    return schema


def _describe_proofs(components: dict[str, Any]) -> None:
    """Says of a proof in an answer that it is one of the known proof systems'."""
    schemas = [system_named(name).proof_schema for name in names()]
    named = {schema["title"]: dict(schema) for schema in schemas if schema is not None}
    components.update(named)
    proof = components["ProofObject"]["properties"]["proof"]
    anything, none = proof["anyOf"]
    others = [anything] if None in schemas else []
    proof["anyOf"] = [*map(routes.of, named), *others, none]
    del proof["title"]


def _with_security(document: dict[str, Any], required: bool) -> dict[str, Any]:
    """Says whether a token is needed, or only taken."""
    document = copy.deepcopy(document)
    for path in document["paths"].values():
        for operation in path.values():
            if "security" in operation and not required:
                operation["security"].append({})
    return document
