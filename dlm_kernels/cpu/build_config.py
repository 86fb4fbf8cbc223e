"""What setup.py compiles for the CPU backend. Imports nothing, so that a build needs no torch."""

SOURCES: list[str] = []
HEADERS: list[str] = []
FLAGS = ["-std=c++17", "-O3", "-fPIC", "-fno-math-errno", "-ffp-contract=off"]
OUTPUT = "dlm_kernels/cpu/_dlmk_cpu.so"
