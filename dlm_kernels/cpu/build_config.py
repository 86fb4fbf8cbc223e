"""What setup.py compiles for the CPU backend. Imports nothing but the standard library, so that a build needs no torch."""

import platform

SOURCES = [
    "csrc/cpu/row.cpp",
    "csrc/cpu/filters.cpp",
    "csrc/cpu/score.cpp",
    "csrc/cpu/select.cpp",
    "csrc/cpu/nearest.cpp",
    "csrc/cpu/rows.cpp",
    "csrc/cpu/topk_kl.cpp",
    "csrc/cpu/transitions.cpp",
    "csrc/cpu/score_entropy.cpp",
    "csrc/cpu/revoke.cpp",
    "csrc/cpu/gaussian.cpp",
    "csrc/cpu/hidden.cpp",
    "csrc/cpu/hidden_read.cpp",
    "csrc/cpu/hidden_filters.cpp",
    "csrc/cpu/normals.cpp",
    "csrc/cpu/normals_avx2.cpp",
    "csrc/cpu/normals_avx512.cpp",
    "csrc/cpu/kernels_scalar.cpp",
    "csrc/cpu/kernels_avx2.cpp",
    "csrc/cpu/kernels_avx512.cpp",
]
# No contraction: the arithmetic that decides tokens must round the same way in every backend.
FLAGS = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-ffp-contract=off"]
# Nobody looks at floating-point exceptions. Without them, a loop with choices in it becomes vectors; elsewhere that only costs.
CHOICES = ["-fno-trapping-math"]
FLAGS_OF: dict[str, list[str]] = {"csrc/cpu/normals.cpp": CHOICES}
if platform.machine().lower() in ("x86_64", "amd64"):
    # Each variant is entered only where the processor has its instructions; elsewhere these files are empty.
    AVX2 = ["-mavx2", "-mfma", "-mf16c"]
    AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]
    FLAGS_OF["csrc/cpu/kernels_avx2.cpp"] = AVX2
    FLAGS_OF["csrc/cpu/kernels_avx512.cpp"] = AVX512
    FLAGS_OF["csrc/cpu/normals_avx2.cpp"] = AVX2 + CHOICES
    FLAGS_OF["csrc/cpu/normals_avx512.cpp"] = [*AVX512, "-mprefer-vector-width=512", *CHOICES]
OUTPUT = "dlm_kernels/cpu/_dlmk_cpu.so"
