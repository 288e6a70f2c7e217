"""The proving service: a prover behind HTTP, and the client for it.

:mod:`.app` puts the service together of :mod:`.routes` (the API), :mod:`.rapidsnark`, :mod:`.page` and what
every request passes (:mod:`.surroundings`, :mod:`.access`); :mod:`.core` is what the routes share: bodies
(:mod:`.bodies`), open and ended proofs (:mod:`.results`), calls that may block. :mod:`.server` listens and
drains; it owns the signals, since uvicorn would stop at the first one. :mod:`.client` needs nothing of all
that, and holds each conversation once, as a generator that a thread or a task drives.

One process has one event loop, in which nothing may block: calls of the prover, JSON and hashes of bodies go
to a few threads. A body is reserved in a budget as it comes, JSON for what it is once parsed, and the
reservation lasts until its job ends. :mod:`.shares` divides budget, queue and threads among tenants (a
token, or an address); :mod:`.connections` accepts, counts and times connections. Bodies are checked by hand
in :mod:`.models`, where the first error ends the work; pydantic's models describe them in the OpenAPI
document, and write answers.

Routes raise ``ProverError`` or ``Problem``. :mod:`.problems` has the one table of statuses, and says
``ProverError.told``, which holds no path; of other exceptions an answer names kind and place.
:mod:`.metrics` counts what ``Prover.observe`` reports, and reads gauges from the status at a scrape, which
waits 100 ms at most. :mod:`gpuprover.logs` writes a fixed list of fields, and never the text of another's
exception.

Packages of the extra ``server`` are imported by these modules alone, and those when somebody serves.
"""
