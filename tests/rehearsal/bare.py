"""With ``REHEARSAL_BARE`` in the environment, importing this leaves what ``make gpu`` may count on.

No network, and no package beyond NumPy, Numba, pytest and hypothesis.
"""

import os
import sys
from importlib.abc import MetaPathFinder

MISSING = frozenset(
    "anyio cupy cupyx fastapi h11 httpx jsonschema matplotlib prometheus_client py_ecc pydantic pynvml "
    "pytest_timeout rich starlette uvicorn wasmtime xdist yaml".split()
)


class _Missing(MetaPathFinder):
    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.partition(".")[0] in MISSING:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def _no_network(event: str, arguments: tuple[object, ...]) -> None:
    if event == "socket.getaddrinfo" or (event == "socket.connect" and isinstance(arguments[1], tuple)):
        raise OSError(101, "Network is unreachable")


if os.environ.get("REHEARSAL_BARE"):
    sys.meta_path.insert(0, _Missing())
    sys.addaudithook(_no_network)
