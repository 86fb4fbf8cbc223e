// The dtypes of logits. Widening to fp32 is exact.
#pragma once

#include "common/portable_math.h"

namespace dlmk {

DLMK_FN float bf16_to_float(uint16_t h) { return bits_float(uint32_t(h) << 16); }

DLMK_FN float half_to_float(uint16_t h) {
#if defined(__CUDA_ARCH__)
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(h));
  return x;
#else
  uint32_t sign = uint32_t(h & 0x8000u) << 16, rest = h & 0x7fffu;
  if (rest >= 0x7c00u) return bits_float(sign | 0x7f800000u | ((rest & 0x3ffu) << 13));
  if (rest >= 0x0400u) return bits_float(sign | ((rest << 13) + 0x38000000u));
  return bits_float(sign | float_bits(float(rest) * 5.9604644775390625e-8f));  // subnormal: rest * 2^-24
#endif
}

// kLowestBit: no widened number has a bit set below it.
struct Fp32 {
  using Storage = uint32_t;
  static constexpr int kLowestBit = 0;
  static DLMK_METHOD float widen(uint32_t bits) { return bits_float(bits); }
};

struct Bf16 {
  using Storage = uint16_t;
  static constexpr int kLowestBit = 16;
  static DLMK_METHOD float widen(uint16_t bits) { return bf16_to_float(bits); }
};

struct Fp16 {
  using Storage = uint16_t;
  static constexpr int kLowestBit = 13;
  static DLMK_METHOD float widen(uint16_t bits) { return half_to_float(bits); }
};

}  // namespace dlmk
