"""Worker processes, ``python -m gpuprover.workers``, and their supervisor, :class:`WorkerPool`.

The pool is an :class:`~gpuprover.executor.Executor`: requests come placed, and it has neither queue nor
policy. Its supervisor (:mod:`.pool`) is one thread that owns all state, without locks around it.
:mod:`.slots` keeps workers alive and replaces them, :mod:`.loads` asks one worker of each kind of device for
a key, and :mod:`.found` merges what workers have found of devices. An exception in one of its steps is
logged and counted (:mod:`.troubles`), and the next step is tried; ``problem`` says meanwhile why nothing is
proved. A run has one end, which removes it before anybody is called: no request is answered twice. A
worker's death makes its runs ``Lost``, and the engine asks again. The death of the supervisor's process ends
everything, its queue included.

A worker (:mod:`.worker`) never imports the caller's ``__main__``, cannot be dumped, writes no core file, and
ends with its socket or with the thread that started it.

Supervisor and worker talk over a socket pair (:mod:`gpuprover.messages`); the bytes of a witness travel as a
descriptor of memory without a name (:mod:`.wire`). Each message has a ``type``:

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
"""

from gpuprover.workers.pool import PoolSettings, WorkerPool

__all__ = ["PoolSettings", "WorkerPool"]
