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
  struct Wide {
    __m256d low, high;
  };
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
  // a * 2^n where the low nine bits of `biased` hold n.
  static Float shift_exponent(Float a, Float biased) {
    const __m256i shift = _mm256_slli_epi32(_mm256_castps_si256(biased), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), shift));
  }
  static Float select(Mask m, Float a, Float b) { return _mm256_blendv_ps(b, a, m); }
  static double exact_total(Float x) {
    return total({_mm256_cvtps_pd(_mm256_castps256_ps128(x)), _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1))});
  }
  static Wide wide() { return {_mm256_setzero_pd(), _mm256_setzero_pd()}; }
  static void widen(Float x, Wide* sum) {
    sum->low = _mm256_add_pd(sum->low, _mm256_cvtps_pd(_mm256_castps256_ps128(x)));
    sum->high = _mm256_add_pd(sum->high, _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1)));
  }
  static double total(const Wide& wide) {
    const __m256d sum = _mm256_add_pd(wide.low, wide.high);
    __m128d half = _mm_add_pd(_mm256_castpd256_pd128(sum), _mm256_extractf128_pd(sum, 1));
    return _mm_cvtsd_f64(_mm_add_sd(half, _mm_unpackhi_pd(half, half)));
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
  static Float floor(Float x) { return _mm256_floor_ps(x); }
  static Float power_of_two(Float n) {
    __m256i exponent = _mm256_add_epi32(_mm256_cvttps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23));
  }
  static void truncate(Float x, int32_t* p) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_cvttps_epi32(x));
  }
  static Int set_int(uint32_t x) { return _mm256_set1_epi64x(int64_t(x)); }
  static Int even(uint32_t x) { return _mm256_add_epi64(set_int(x), _mm256_setr_epi64x(0, 2, 4, 6)); }
  static Int odd(uint32_t x) { return _mm256_add_epi64(set_int(x), _mm256_setr_epi64x(1, 3, 5, 7)); }
  static Int exclusive(Int a, Int b) { return _mm256_xor_si256(a, b); }
  static Int multiply(Int a, Int b) { return _mm256_mul_epu32(a, b); }
  static Int high(Int a) { return _mm256_srli_epi64(a, 32); }
  static Int join(Int even, Int odd) { return _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA); }
  static uint32_t at_most(Int a, uint32_t b) {
    Int bound = _mm256_set1_epi32(int(b));
    return uint32_t(_mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_min_epu32(a, bound), a))));
  }
  static void store_int(uint32_t* p, Int a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a); }
};

#include "cpu/kernels_impl.h"

}  // namespace

const ChunkKernels kAvx2Kernels = table("avx2", normals_avx2);

}  // namespace dlmk
#endif
