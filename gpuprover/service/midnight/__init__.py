"""Midnight's proof server: its routes and bodies over a prover of this package.

Clients of the network's own server find the same paths, bodies and statuses here (:mod:`.routes`), for
browsers with permission from any page (:mod:`.cors`). Keys come with requests: :mod:`.keys` keeps them by
digest, in a folder where the engine finds them as circuits, so that a proof waits, runs, is cancelled and is
counted like any other. :mod:`.proof_server` holds what the routes share, and proves a small circuit at the
start: before that has succeeded, nothing is called ready.

Errors are text, as these clients show it: which check failed at which instruction, without values of the
preimage unless the service's owner wants them. Statuses that clients answer by trying again, 500 and 503,
are kept for what may succeed then.
"""
