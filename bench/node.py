"""A program that holds one engine, for measuring it from outside: a node of a small network.

    python -m gpuprover.bench.node DESCRIPTOR SETTINGS

The descriptor is of a Unix socket, on which requests come and answers go (:mod:`gpuprover.messages`);
settings are the arguments of ``create_prover`` as JSON. It says ``{"ready": true}``, then answers requests:

============================================  =========================================================
``do``                                        answer
============================================  =========================================================
``prove``: ``circuit``, ``witness`` (a path)  ``proof``, ``public_signals``, ``seconds`` of each of ``count``
``count``, ``at_once``                        proofs, one after the other or all submitted at once
``verify``: ``circuit``, ``count``,           ``valid``: how many hold; ``seconds`` of each of ``count``
``public_signals``, ``proof``                 verifications of this statement
``status``                                    ``status``: the engine's own, as a dict
``close``                                     none; the engine is closed and the program ends
============================================  =========================================================

A failure is answered by ``{"error": message}``. It ends when its channel does.
"""

from __future__ import annotations

import json
import socket
import sys
import time
from typing import Any

from gpuprover import create_prover
from gpuprover.errors import ProverError
from gpuprover.messages import Channel, ConnectionLost

READY_SECONDS = 300.0
"""Seconds for the engine to be ready, compiling included."""
POLL_SECONDS = 0.01


def _prove(prover: Any, request: dict[str, Any]) -> dict[str, Any]:
    circuit, witness, count = request["circuit"], request["witness"], int(request.get("count", 1))
    begun = time.perf_counter()
    seconds = []
    if request.get("at_once"):
        jobs = [prover.submit(circuit, witness) for _ in range(count)]
        for job in jobs:
            result = job.wait()
            seconds.append(time.perf_counter() - begun)
    else:
        for _ in range(count):
            begun = time.perf_counter()
            result = prover.prove(circuit, witness)
            seconds.append(time.perf_counter() - begun)
    return {"proof": result.proof, "public_signals": result.public_signals, "seconds": seconds}


def _verify(prover: Any, request: dict[str, Any]) -> dict[str, Any]:
    valid, seconds = 0, []
    for _ in range(int(request.get("count", 1))):
        begun = time.perf_counter()
        valid += bool(prover.verify(request["circuit"], request["public_signals"], request["proof"]))
        seconds.append(time.perf_counter() - begun)
    return {"valid": valid, "seconds": seconds}


def _answer(prover: Any, request: dict[str, Any]) -> dict[str, Any]:
    try:
        if request["do"] == "prove":
            return _prove(prover, request)
        if request["do"] == "verify":
            return _verify(prover, request)
        return {"status": prover.get_status().as_dict()}
    except ProverError as error:
        return {"error": f"{error.kind}: {error.message}"}


def main() -> None:
    channel = Channel(socket.socket(fileno=int(sys.argv[1])))
    with create_prover(wait=False, **json.loads(sys.argv[2])) as prover:
        deadline = time.monotonic() + READY_SECONDS
        while not prover.get_status().ready and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        channel.send({"ready": prover.get_status().ready})
        try:
            while (request := channel.receive()[0])["do"] != "close":
                channel.send(_answer(prover, request))
        except ConnectionLost:
            pass  # whoever measured is gone


if __name__ == "__main__":
    main()
