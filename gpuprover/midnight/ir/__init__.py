"""ZKIR: the instructions of a circuit, their files, and their execution on integers.

A circuit (:mod:`.circuit`) is read and written by :mod:`.files`, from the tables of operations of :mod:`.v2`
and :mod:`.v3` and the kinds of fields of :mod:`.codec`. :mod:`.run` executes it on a preimage, by a machine
for each version (:mod:`.machine_v2`, :mod:`.machine_v3`) on common ground (:mod:`.machine`, :mod:`.hashing`).
What is wrong with a preimage is said by :mod:`.failure`.
"""
