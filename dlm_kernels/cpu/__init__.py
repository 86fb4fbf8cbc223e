"""The C++ backend: a framework-free library behind a C ABI, called through ctypes."""

from dlm_kernels.cpu.library import available, isa, openmp_runtime

__all__ = ["available", "isa", "openmp_runtime"]
