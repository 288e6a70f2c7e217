"""Worker processes, ``python -m gpuprover.workers``, and their supervisor, :class:`WorkerPool`.

The supervisor is one thread (:mod:`.pool`); :mod:`.slots` has the lives of its workers, :mod:`.loads` the
keys that they load, :mod:`.found` the devices that they find, :mod:`.troubles` what goes wrong meanwhile. A
worker is :mod:`.worker`; :mod:`.wire` packs its requests.

Supervisor and worker talk over a socket pair (:mod:`gpuprover.messages`). Each message has a ``type``:

| to a worker | fields |
| --- | --- |
| ``start`` | ``device``; ``threads`` to plan for; ``key_bytes``; ``pinned``; ``warm``; ``survey`` for GPUs |
| ``load``, ``unload`` | ``path``; ``id``, ``pin`` |
| ``prove`` | ``request``, ``witness``, with the bytes of a witness as a descriptor |
| ``cancel`` | ``id`` of a request |
| ``shrink``, ``stop`` | |

| from a worker | fields |
| --- | --- |
| ``starting`` | ``phase``, ``fraction`` |
| ``hello`` | ``version``; ``device``, a record, and all ``devices``, if it looked; ``hardened``; ``memory`` |
| ``alive`` | ``memory``, ``cpu`` seconds; every second from the first one on |
| ``loaded`` | ``id``, ``key`` or ``error`` |
| ``progress`` | ``id``, ``phase``, ``fraction``, ``elapsed`` |
| ``done`` | ``id``, ``result`` or ``error`` |
| ``refused`` | ``id`` of a request that came too late: it stops |
| ``stopping`` | |
| ``failed`` | ``error``: why it cannot start |

A worker ends when the socket does.
"""

from gpuprover.workers.pool import PoolSettings, WorkerPool

__all__ = ["PoolSettings", "WorkerPool"]
