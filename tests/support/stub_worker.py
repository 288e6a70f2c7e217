"""In place of ``gpuprover.workers``: speaks a worker's messages and proves nothing, or misbehaves as asked.

How is said by the key's path in requests and loads, and, for the start, by the environment variable ``STUB``.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from typing import Any

from gpuprover.messages import Channel
from gpuprover.processes import harden

MEMORY = {"rss": 50 << 20, "external": 20 << 20}
GPU = {"kind": "cuda", "model": "a stub", "path": "sm_90", "memory": 1 << 30}
PROOF = {
    "proof": {},
    "public_signals": [],
    "timings": {},
    "memory": {"before": 0, "peak": 0, "after": 0},
    "warnings": ["made by a stub"],
}
KEY: dict[str, Any] = {
    "identity": [0, 0, 0, 0],
    "protocol": "groth16",
    "curve": "bn254",
    "constraints": 1,
    "n_public": 1,
    "n_vars": 3,
    "host_parts": [],
    "verification_key": {},
    "digest": "",
    "warnings": [],
}
DEVICE_ERROR = {"kind": "DeviceError", "message": "an illegal address", "exit_code": 3}


def main() -> None:
    harden(int(sys.argv[2]))
    channel = Channel(socket.socket(fileno=int(sys.argv[1])), max_fds=1)
    how = os.environ.get("STUB", "")
    start, _ = channel.receive()
    device = start["device"]
    if how == "crash":
        print("something", file=sys.stderr)
        sys.exit("the stub crashes on purpose")
    if how == "hang":
        time.sleep(600)
    if how == "babble":
        channel.send({"type": "progress", "id": "one", "where": "nowhere"})
        channel.send({"type": "hello"})
        time.sleep(600)
    if how == "no survey" and start["survey"]:
        os._exit(1)
    own = {"name": device, "kind": "cpu"} if device == "cpu" else {"name": device, **GPU}
    others = [{"name": "cpu", "kind": "cpu"}]
    if how == "gpus":
        others += [{"name": f"cuda:{i}", **GPU} for i in range(2)]
        others += [{"name": "cuda:2", **GPU, "problem": "it is broken"}]
    channel.send(
        {
            "type": "hello",
            "version": "",
            "device": own,
            "devices": others if start["survey"] else None,
            "hardened": True,
            "memory": MEMORY,
        }
    )
    serve(channel, device)


def serve(channel: Channel, device: str) -> None:
    running: list[int] = []
    held = MEMORY["rss"]

    def done(number: int, **answer: Any) -> None:
        channel.send({"type": "done", "id": number, **(answer or {"result": {**PROOF, "device": device}})})

    while True:
        message, fds = channel.receive()
        for fd in fds:
            os.close(fd)
        kind = message["type"]
        if kind == "stop":
            while running:
                done(running.pop())
            os._exit(0)
        elif kind == "load":
            if "dies" in message["path"]:
                os._exit(1)
            plan = {"key": 1, "tables": 0, "arena": len(device), "host": 0}
            plans = {"cpu" if device == "cpu" else "cuda": [plan]}
            key = {**KEY, "path": message["path"], "plans": plans}
            channel.send({"type": "loaded", "id": message["id"], "key": key})
        elif kind == "prove":
            number, how = message["request"]["id"], os.path.basename(message["request"]["path"])
            if how == "grows":
                held *= 2
                done(number)
                channel.send({"type": "alive", "memory": {**MEMORY, "rss": held}, "cpu": 0.0, "keys": None})
            elif how == "waits":
                running.append(number)
            elif how == "twice":
                done(number)
                done(number)
            elif how == "breaks":
                # With all that runs there.
                for failed in (*running, number):
                    done(failed, error=DEVICE_ERROR)
                running.clear()
            elif how == "kills":
                os._exit(1)
            elif how == "warns":
                for _ in range(2):
                    channel.send({"type": "warning", "text": "there is no room"})
                done(number)
            elif how == "late":
                # Deaf to the cancellation that comes, and answers when nobody waits any more.
                time.sleep(0.5)
                done(number)
            else:
                done(number)
                for other in running:
                    done(other)
                running.clear()


main()
