"""The verifier as a process of its own: it holds verification keys, and no proving material, GPU or wasm.

``python -m gpuprover.verifier`` is the process (:mod:`~gpuprover.verifier.server`); the
:class:`~gpuprover.verifier.client.VerifierClient` talks to one that runs somewhere, and the
:class:`~gpuprover.verifier.process.VerifierProcess` to one of its own, which it restarts when it dies.
Importing this package imports nothing.

:mod:`~gpuprover.verifier.connections` has all sockets, in one thread without locks around them, and decides
by room, time and places what may be read and who has to go. The server parses short messages in that thread
and long ones in another, and a few threads verify; connections take turns, and so do proofs and parts of
batches. Each message is answered once, whatever became of its connection, by functions that cannot raise.
:mod:`~gpuprover.verifier.secret` is the handshake over TCP, and :mod:`~gpuprover.verifier.address` asks the
system who is at the other end of a Unix socket. A verification has no side effects, so that a client
recovers by one rule: on a new connection it loads the keys again and sends the calls without an answer
again.

Messages are those of :mod:`gpuprover.messages`. A request is ``{"id", "op", …}``, its answer
``{"id", "result": {…}}`` or ``{"id", "error": {"kind", "message", "exit_code"}}``; answers come in any order.

================  ==========================================  ==============================================
op                request                                     result
================  ==========================================  ==============================================
``hello``                                                     ``protocol``, ``version``, ``pid``, ``ready``,
                                                              ``missing_threads``
``authenticate``  ``nonce``, then ``proof``: over TCP, if     see :mod:`~gpuprover.verifier.secret`
                  the verifier has a secret
``load``          ``name``, ``verification_key``, ``digest``  ``digest``, once the key's points are checked
``unload``        ``name``                                    ``unloaded``
``verify``        ``name`` or ``digest``, ``public``,         ``valid``
                  ``proof``
``verify_batch``  ``name`` or ``digest``, ``statements``:     ``valid``, a list
                  pairs of public signals and proof
``status``                                                    see ``VerifierStatus``
``shutdown``      (not over TCP)                              an empty object; what runs is finished
================  ==========================================  ==============================================

An id is a whole number of at most 63 bits; what has none, or is no message, is answered with the id null, and
after what is no message the connection ends.

Both sides compute a key's digest (:class:`gpuprover.systems.system.VerificationKey`), and a key is what its
digest says: a name that a connection loads means that key on this connection alone, so that no client can
exchange another's key. The names that a verifier was started with are known to all.
"""
