"""CUDA C++ sources, compiled at run time; see README.md."""
