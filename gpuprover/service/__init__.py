"""The proving service: a prover behind HTTP, and the client for it.

:mod:`.app` puts the service together of :mod:`.routes` (the API), :mod:`.rapidsnark`, :mod:`.page` and what
every request passes (:mod:`.surroundings`, :mod:`.access`); :mod:`.core` is what the routes share: bodies
(:mod:`.bodies`), open and ended proofs (:mod:`.results`), calls that may block. :mod:`.server` listens and
drains. :mod:`.client` needs nothing of all that.

Packages of the extra ``server`` are imported by these modules alone, and those when somebody serves.
"""
