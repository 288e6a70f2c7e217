"""The CUDA backend. Importing this package imports nothing; the kernels are the files of ``kernels/``.

:mod:`.device` is all that is asked of CUDA: addresses, launches by name, streams. :mod:`.cupy_device` is the
real one, and the tests have one that runs the same kernels on the host. :mod:`.ntt`, :mod:`.msm` (by
:mod:`.msm_plan` and :mod:`.msm_launches`), :mod:`.sparse`, :mod:`.vectors` and :mod:`.columns` are operations
as launches; :mod:`.sums` orders a proof's sums on its streams; :mod:`.backend` puts them behind the contract,
and hands out :mod:`.handles`. The host computes sizes and, once for a key, the order of its entries, and
touches no field element.

Memory: a GPU has one pool with a limit (:mod:`.allocation`). A proof takes one arena from it at its start, of
the size that a rehearsal of its steps on a device that does nothing has found (:mod:`.rehearsal`), so that
it cannot run out of memory on its way. :mod:`.residency` decides which parts of a key stay on the device,
and what a proof gives up first. ``tests/cuda/test_calls.py`` counts what a warm proof asks of the driver:
copies and launches.

Streams: a proof has a main one; sums in G2, sorts and reductions have their own where there is memory. A
proof's memory goes back while its main stream still works on it; other streams that get such memory wait for
that one, and what side streams use is held until they are done. ``tests/cuda/test_streams.py`` runs all of
it in the orders that CUDA allows.

:mod:`.probe` finds the GPUs without a context, and :mod:`.gpus` names them and keeps one open device of
each. :mod:`.source` lists the programs, :mod:`.compile` finds or makes their cubins, and :mod:`.build` makes
them in advance.
"""
