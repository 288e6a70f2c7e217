"""The CUDA sources of ``kernels/`` as a compiler needs them. Importing this package imports nothing."""
