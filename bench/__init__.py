"""``gpuprover bench``; in the wheel as ``gpuprover.bench``. Modules here import each other relatively.

:mod:`.operations` and :mod:`.proofs` list what is compared, each as a ``Contestant`` of one ``measure`` call
(:mod:`.measure`), which runs all of them in turns and writes one row each (:mod:`.rows`). Pictures, report
and the tables of documents (:mod:`.pictures`, :mod:`.report`, :mod:`.documents`) are functions of rows; rows
lie with their origin in ``bench/results/``. Devices come from the registry, so that a new backend is
measured without a change here.

:mod:`.processes` watches an engine's processes from outside, over ``/proc``; :mod:`.node` is the program
that holds the engine, and :mod:`.network` runs seven of them. :mod:`.load` has the clients that load a
service over HTTP. :mod:`.calibrate` measures the times that placement uses, and :mod:`.fit` the constants of
the CPU's cost model.

``bench/gpu`` is ``make gpu``: cases with predicted durations, each run in a worker process that may die,
under a deadline. A case names the compiled code that it needs, and ``preparing`` compiles what is missing
meanwhile. A call goes on from the rows that are there.
"""
