"""What Numba compiles. Its callers in :mod:`gpuprover.cpu` reach it through :mod:`gpuprover.cpu.compiled`.

A module here is imported with the first of its kernels that is called, and not at all where an image
(:mod:`gpuprover.cpu.image`) has it.
"""
