"""Proof systems, one folder each; :mod:`gpuprover.systems.system` is all that is known of them above.

A folder holds the protocol in the order of its paper: ``key`` (its proving keys), ``documents`` (proofs and
verification keys), ``prover``, ``verifier``, ``setup``, and ``record``, which ties them together. Provers and
verifiers call a backend and nothing else.
"""
