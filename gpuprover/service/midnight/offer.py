"""Midnight's routes as a part of the service."""

from __future__ import annotations

from fastapi import FastAPI

from gpuprover.service.core import Service
from gpuprover.service.midnight import routes
from gpuprover.service.midnight.cors import AnyOrigin
from gpuprover.service.midnight.proof_server import ProofServer


class Midnight:
    """What the application takes in, step by step.

    Attributes:
        server: to be started and stopped with the service.
        methods: of each path.
        concealed: paths that answer other methods as if they were not there.
    """

    def __init__(self, service: Service) -> None:
        self.server = ProofServer(service)
        self.methods = {path: [method] for path, method in routes.METHODS.items()}
        self.concealed = self.methods.keys() - {"/", "/health"}

    def include(self, app: FastAPI) -> None:
        """The routes."""
        app.state.midnight = self.server
        app.include_router(routes.router)

    def surround(self, app: FastAPI) -> None:
        """What their requests pass before anything else."""
        app.add_middleware(AnyOrigin, paths=[path.partition("{")[0] for path in self.methods])
