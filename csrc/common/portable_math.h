// Arithmetic that decides tokens, spelled out operation by operation so that every backend rounds alike.
// Compile with -ffp-contract=off: a fused multiply-add would round once where these round twice.
// The same formulas in PyTorch: dlm_kernels/reference/portable_math.py.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define DLMK_FN __host__ __device__ inline
#else
#define DLMK_FN static inline
#endif

namespace dlmk {

DLMK_FN uint32_t float_bits(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return bits;
}

DLMK_FN float bits_float(uint32_t bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}

// Natural logarithm of a positive normal number (Cephes logf).
DLMK_FN float portable_log(float y) {
  uint32_t bits = float_bits(y);
  int exponent = int((bits >> 23) & 255u) - 126;
  float m = bits_float((bits & 0x7fffffu) | 0x3f000000u);
  if (m < 0.70710677f) {
    exponent -= 1;
    m = (m + m) - 1.0f;
  } else {
    m = m - 1.0f;
  }
  float z = m * m;
  float p = 7.0376836292e-2f;
  p = p * m - 1.1514610310e-1f;
  p = p * m + 1.1676998740e-1f;
  p = p * m - 1.2420140846e-1f;
  p = p * m + 1.4249322787e-1f;
  p = p * m - 1.6668057665e-1f;
  p = p * m + 2.0000714765e-1f;
  p = p * m - 2.4999993993e-1f;
  p = p * m + 3.3333331174e-1f;
  float e = float(exponent);
  float r = (p * m) * z;
  r = r + (-2.12194440e-4f * e);
  r = r - 0.5f * z;
  r = m + r;
  return r + 0.693359375f * e;
}

// e^x for x <= 0 (Cephes expf); 0 below -87.
DLMK_FN float portable_exp(float x) {
  if (x < -87.0f) return 0.0f;
  float scaled = 1.44269504f * x + 0.5f;
  int n = int(scaled);
  if (float(n) > scaled) n -= 1;  // floor
  float fn = float(n);
  x = x - fn * 0.693359375f;
  x = x - fn * (-2.12194440e-4f);
  float p = 1.9875691500e-4f;
  p = p * x + 1.3981999507e-3f;
  p = p * x + 8.3334519073e-3f;
  p = p * x + 4.1665795894e-2f;
  p = p * x + 1.6666665459e-1f;
  p = p * x + 5.0000001201e-1f;
  float y = p * (x * x);
  y = y + x;
  y = y + 1.0f;
  return y * bits_float(uint32_t(n + 127) << 23);
}

// 32 random bits to (0, 1): the middle of the word's interval, kept below 1 where rounding would reach it.
DLMK_FN float uniform_from_word(uint32_t word) {
  float u = float(word) * 2.3283064365386963e-10f;  // 2^-32, exact
  u = u + 1.1641532182693481e-10f;                  // 2^-33
  return u < 0.99999994f ? u : 0.99999994f;         // 1 - 2^-24
}

// -log(1 - u), without the cancellation of 1 - u where u is small.
DLMK_FN float exponential_from_uniform(float u) {
  if (u >= 0.0625f) return -portable_log(1.0f - u);
  float e = u * 0.2f + 0.25f;
  e = u * e + 0.33333334f;
  e = u * e + 0.5f;
  e = u * e + 1.0f;
  return u * e;
}

DLMK_FN float gumbel_from_word(uint32_t word) {
  return -portable_log(exponential_from_uniform(uniform_from_word(word)));
}

// The largest Gumbel value that gumbel_from_word returns (word 0), rounded up.
constexpr float kLargestGumbel = 22.9f;

// A monotone map of floats to unsigned integers: a < b iff ordered(a) < ordered(b); -0 and +0 map alike. Not for NaN.
DLMK_FN uint32_t ordered_bits(float x) {
  uint32_t bits = float_bits(x + 0.0f);
  return (bits & 0x80000000u) ? ~bits : (bits | 0x80000000u);
}

}  // namespace dlmk
