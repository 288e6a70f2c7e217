"""Circuits of gates, wires and copy constraints, as snarkjs's PLONK and FFLONK share them.

A gate is qL·a + qR·b + qM·a·b + qO·c + qC + PI = 0 on one row of a domain of n rows, n a power of two; a, b
and c are its wires. That wires of one signal have one value is shown by a permutation of all 3n positions.

:mod:`.key` has what keys of both systems hold alike, :mod:`.wires` makes the columns a, b, c of a witness,
:mod:`.permutation` the grand product over them, :mod:`.quotient` divides by X^n − 1 on cosets, and
:mod:`.diagnosis` says which gate a witness breaks, for :mod:`.checks` of keys and proofs.
:mod:`.verification` is the verifiers' part, :mod:`.documents` what documents of both have in common.

A set-up goes from constraints to gates (:mod:`.gates`), commits to their columns (:mod:`.column_commitments`)
and writes a key (:mod:`.setup`, :mod:`.key_writer`); :mod:`.outline` tells its sizes before it is there,
:mod:`.consistency` computes it anew.

Source: Gabizon, Williamson, Ciobotaru, "PLONK: Permutations over Lagrange-bases for Oecumenical
Noninteractive arguments of Knowledge", eprint 2019/953, sections 6 and 8.
"""
