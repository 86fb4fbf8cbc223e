// The row kernels for AVX-512. The rest of the library does not assume it: standard headers come before the target is set, and
// every function that this file compiles has internal linkage or a name of its own.
#if defined(__x86_64__) || defined(_M_X64)

#include <math.h>
#include <stdint.h>
#include <string.h>

#include <initializer_list>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,popcnt,bmi"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,popcnt,bmi")
#endif

#include "cpu/row_kernels.h"
#include "cpu/vec_avx512.h"

namespace dlmk {
extern const InstructionSet AVX512_SET;
const InstructionSet AVX512_SET = instruction_set<VecAvx512>("avx512");
}  // namespace dlmk

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
