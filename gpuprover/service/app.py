"""The application: routes, what every request passes, errors as problem documents, OpenAPI."""

from __future__ import annotations

from collections.abc import AsyncIterator
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
from gpuprover.service.core import VERSION, MakeMetrics, Service
from gpuprover.service.metrics import Metrics
from gpuprover.service.problems import MEDIA_TYPE, Problem, of_status
from gpuprover.service.surroundings import Surroundings, current

DESCRIPTION = "Zero-knowledge proofs for circom's circuits: Groth16 over BN254 and BLS12-381."


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

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.stop()

    app = FastAPI(
        title="gpuprover",
        version=VERSION,
        description=DESCRIPTION,
        docs_url=None,  # their pages load scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
        redirect_slashes=False,
    )
    app.state.service = service
    app.include_router(routes.open_router)
    app.include_router(routes.router)
    if settings.rapidsnark:
        app.state.slot = rapidsnark.Slot()
        app.include_router(rapidsnark.router)
    app.include_router(page.router)
    service.metrics = metrics(prover, _routes(app))
    app.add_middleware(Surroundings, observe=service.metrics.answered)
    _answer_errors(app, service)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def _routes(app: FastAPI) -> list[str]:
    """``METHOD /path/{of}``, of all routes."""
    paths = get_openapi(title="", version="", routes=app.routes)["paths"]
    listed = [f"{method.upper()} {path}" for path, methods in paths.items() for method in methods]
    return [*listed, "GET /", "GET /openapi.json"]


def _answer_errors(app: FastAPI, service: Service) -> None:
    async def answer(request: Request, problem: Problem) -> Response:
        context = current.get()
        body = problem.body(context.request_id if context is not None else None)
        return Response(body, problem.status, problem.headers, MEDIA_TYPE)

    async def refused(request: Request, error: Exception) -> Response:
        if isinstance(error, Problem):
            return await answer(request, error)
        if isinstance(error, ProverError):
            return await answer(request, service.problem(error))
        if isinstance(error, RequestValidationError):
            first = error.errors()[0]
            where = " ".join(str(part)[:40] for part in first["loc"])
            return await answer(request, Problem(400, "InvalidInput", f"{where}: {first['msg']}"))
        assert isinstance(error, HTTPException)
        return await answer(request, of_status(error.status_code, error.headers))

    for kind in (Problem, ProverError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, refused)


def _openapi(app: FastAPI) -> dict[str, Any]:
    """The document that follows from the routes, with the models of bodies that they read themselves."""
    if app.openapi_schema is None:
        schema = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes
        )
        _, found = models_json_schema(
            [(model, "validation") for model in models.BESIDES],
            ref_template="#/components/schemas/{model}",
        )
        components = schema["components"]["schemas"]
        components.update(found["$defs"])
        for path in schema["paths"].values():
            for operation in path.values():
                # Parameters that are no good are a 400 here.
                if "HTTPValidationError" in str(operation["responses"].get("422")):
                    del operation["responses"]["422"]
                    operation["responses"].setdefault("400", routes.problems(400)[400])
        for name in ("HTTPValidationError", "ValidationError"):
            components.pop(name, None)
        app.openapi_schema = schema
    return app.openapi_schema
