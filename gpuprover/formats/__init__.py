"""The files of circom and snarkjs: parsed, checked, written. Nothing is computed here.

:mod:`.binfile` is the container that all binary files share; :mod:`.r1cs`, :mod:`.wtns`, :mod:`.ptau` and
:mod:`.zkey` (which proof system a key is for) are its contents, and :mod:`.points` and :mod:`.compressed`
points in them. :mod:`.snarkjs_json` has what JSON documents of all proof systems share. Keys and documents
of one proof system are in its folder of :mod:`gpuprover.systems`. :mod:`.files` opens and replaces files,
and :mod:`.json_files` parses JSON in slices that never hold the interpreter for long; ``parsed_size_bound``
says what a document takes once parsed.

Files come from strangers. Every count, offset and value is checked before it is used; a failure names file,
part and what was expected. Time is linear in a document's size, the first error ends the work, and
``tests/fuzz/growth.py`` measures both. A mapped file, and a caller's array, may change after that: a witness
is copied before it is checked, its public signals are read once, and kernels compare every index where they
use it. Inputs and witnesses may come from a pipe, so that secrets need no file. Outputs go to a temporary
file in the target's folder, are synced, and take the target's place.
"""
