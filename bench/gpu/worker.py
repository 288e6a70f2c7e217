"""The process that launches kernels: a case a line in, its rows or its failure a line out.

It may die, or be killed: whoever started it starts another. It ends when its input does, so that nothing
is left of a run that was killed.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from pathlib import Path
from typing import Any

from gpuprover.errors import ProverError

from ..measure import Failed
from .measures import CUDA, KINDS_OF_CASES, Machine
from .rates import Skipped

SPIN_SECONDS = 0.02
"""Waits ask again and again for so long: the steps in which they do it later are no part of a measurement."""


def _machine(folder: Path, threads: int) -> Machine:
    from gpuprover.cuda import cupy_device
    from gpuprover.cuda.gpus import open_device, resolve

    cupy_device.SPIN_SECONDS = SPIN_SECONDS
    return Machine(open_device(resolve(CUDA)), folder, threads)


def _answer(machine: Machine, request: dict[str, Any]) -> dict[str, Any]:
    machine.multiplier = request["multiplier"]
    try:
        return {"rows": KINDS_OF_CASES[request["kind"]](machine, **request["arguments"])}
    except Skipped as reason:
        return {"skipped": str(reason)}
    except Failed as failure:  # a result that is not right: the device is as it was
        return {"error": str(failure), "good": True}
    except ProverError as failure:
        return {"error": failure.message}
    except Exception as failure:
        import traceback

        traceback.print_exc()
        return {"error": f"{type(failure).__name__}: {failure}"}


def main() -> None:
    folder, threads = Path(sys.argv[1]), int(sys.argv[2])
    # The channel is ours alone: what else is printed goes to the log.
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    requests: queue.Queue[str] = queue.Queue()

    def read() -> None:
        for line in sys.stdin:
            requests.put(line)
        os._exit(1)

    threading.Thread(target=read, daemon=True).start()
    machine: Machine | None = None
    while True:
        request = json.loads(requests.get())
        if request["kind"] == "end":
            channel.write("{}\n")
            channel.close()
            return
        try:
            machine = machine or _machine(folder, threads)
        except ProverError as failure:
            answer: dict[str, Any] = {"error": failure.message, "device": False}
        else:
            answer = _answer(machine, request)
        channel.write(json.dumps(answer) + "\n")
        channel.flush()


if __name__ == "__main__":
    main()
