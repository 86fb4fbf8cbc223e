// Eight lanes: AVX2, FMA, F16C. Compiled with those flags; entered only where the processor has them.
#if defined(__x86_64__)
#include <immintrin.h>

#include <cmath>

#include "cpu/kernels.h"

namespace dlmk {
namespace {

struct V {
  using Float = __m256;
  using Int = __m256i;
  using Mask = __m256;
  static constexpr int W = 8;
  static Float load(const float* p) { return _mm256_loadu_ps(p); }
  static Float load_bf16(const uint16_t* p) {
    __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
  }
  static Float load_f16(const uint16_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static void store(float* p, Float x) { _mm256_storeu_ps(p, x); }
  static Float set(float x) { return _mm256_set1_ps(x); }
  static Float add(Float a, Float b) { return _mm256_add_ps(a, b); }
  static Float sub(Float a, Float b) { return _mm256_sub_ps(a, b); }
  static Float mul(Float a, Float b) { return _mm256_mul_ps(a, b); }
  static Float div(Float a, Float b) { return _mm256_div_ps(a, b); }
  static Float fma(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }
  static Float fnma(Float a, Float b, Float c) { return _mm256_fnmadd_ps(a, b, c); }
  static Float max(Float a, Float b) { return _mm256_max_ps(a, b); }
  static Float round(Float x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static Float scale(Float p, Float n) {
    __m256i shift = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), shift));
  }
  static Float select(Mask m, Float a, Float b) { return _mm256_blendv_ps(b, a, m); }
  static float total(Float x) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_shuffle_ps(half, half, 1)));
  }
  static float highest(Float x) {
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_shuffle_ps(half, half, 1)));
  }
  static Mask none() { return _mm256_setzero_ps(); }
  static Mask ge(Float a, Float b) { return _mm256_cmp_ps(a, b, _CMP_GE_OQ); }
  static Mask unordered(Float a, Float b) { return _mm256_cmp_ps(a, b, _CMP_UNORD_Q); }
  static Mask either(Mask a, Mask b) { return _mm256_or_ps(a, b); }
  static bool any(Mask m) { return _mm256_movemask_ps(m) != 0; }
  static uint32_t bits(Mask m) { return uint32_t(_mm256_movemask_ps(m)); }
  static Int set_int(uint32_t x) { return _mm256_set1_epi32(int(x)); }
  static Int lanes() { return _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7); }
  static Int add_int(Int a, Int b) { return _mm256_add_epi32(a, b); }
  static Int exclusive(Int a, Int b) { return _mm256_xor_si256(a, b); }
  static void multiply(Int a, uint32_t b, Int* high, Int* low) {
    Int factor = set_int(b);
    Int even = _mm256_mul_epu32(a, factor);
    Int odd = _mm256_mul_epu32(_mm256_srli_epi64(a, 32), factor);
    *low = _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA);
    *high = _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xAA);
  }
  static uint32_t at_most(Int a, uint32_t b) {
    Int bound = set_int(b);
    return uint32_t(_mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_min_epu32(a, bound), a))));
  }
  static void store_int(uint32_t* p, Int a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a); }
};

#include "cpu/kernels_impl.h"

}  // namespace

const ChunkKernels kAvx2Kernels = table("avx2");

}  // namespace dlmk
#endif
