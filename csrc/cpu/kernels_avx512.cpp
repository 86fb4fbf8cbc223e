// Sixteen lanes: AVX-512 F, BW, DQ, VL. Compiled with those flags; entered only where the processor has them.
#if defined(__x86_64__)
#include <immintrin.h>

#include <cmath>

#include "cpu/kernels.h"

namespace dlmk {
namespace {

struct V {
  using Float = __m512;
  using Int = __m512i;
  using Mask = __mmask16;
  struct Wide {
    __m512d low, high;
  };
  static constexpr int W = 16;
  static Float load(const float* p) { return _mm512_loadu_ps(p); }
  static Float load_bf16(const uint16_t* p) {
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
  }
  static Float load_f16(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static void store(float* p, Float x) { _mm512_storeu_ps(p, x); }
  static Float set(float x) { return _mm512_set1_ps(x); }
  static Float add(Float a, Float b) { return _mm512_add_ps(a, b); }
  static Float sub(Float a, Float b) { return _mm512_sub_ps(a, b); }
  static Float mul(Float a, Float b) { return _mm512_mul_ps(a, b); }
  static Float div(Float a, Float b) { return _mm512_div_ps(a, b); }
  static Float fma(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
  static Float fnma(Float a, Float b, Float c) { return _mm512_fnmadd_ps(a, b, c); }
  static Float max(Float a, Float b) { return _mm512_max_ps(a, b); }
  static Float shift_exponent(Float a, Float biased) {
    const __m512i shift = _mm512_slli_epi32(_mm512_castps_si512(biased), 23);
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a), shift));
  }
  static Float select(Mask m, Float a, Float b) { return _mm512_mask_blend_ps(m, b, a); }
  static double exact_total(Float x) {
    const __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256(x)), high = _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1));
    return _mm512_reduce_add_pd(_mm512_add_pd(low, high));
  }
  static Wide wide() { return {_mm512_setzero_pd(), _mm512_setzero_pd()}; }
  static void widen(Float x, Wide* sum) {
    sum->low = _mm512_add_pd(sum->low, _mm512_cvtps_pd(_mm512_castps512_ps256(x)));
    sum->high = _mm512_add_pd(sum->high, _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1)));
  }
  static double total(const Wide& sum) { return _mm512_reduce_add_pd(_mm512_add_pd(sum.low, sum.high)); }
  static float highest(Float x) { return _mm512_reduce_max_ps(x); }
  static Mask none() { return 0; }
  static Mask ge(Float a, Float b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
  static Mask unordered(Float a, Float b) { return _mm512_cmp_ps_mask(a, b, _CMP_UNORD_Q); }
  static Mask either(Mask a, Mask b) { return Mask(a | b); }
  static bool any(Mask m) { return m != 0; }
  static uint32_t bits(Mask m) { return m; }
  static Float floor(Float x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); }
  static Float power_of_two(Float n) {
    __m512i exponent = _mm512_add_epi32(_mm512_cvttps_epi32(n), _mm512_set1_epi32(127));
    return _mm512_castsi512_ps(_mm512_slli_epi32(exponent, 23));
  }
  static void truncate(Float x, int32_t* p) { _mm512_storeu_si512(p, _mm512_cvttps_epi32(x)); }
  static Int set_int(uint32_t x) { return _mm512_set1_epi64(int64_t(x)); }
  static Int even(uint32_t x) { return _mm512_add_epi64(set_int(x), _mm512_setr_epi64(0, 2, 4, 6, 8, 10, 12, 14)); }
  static Int odd(uint32_t x) { return _mm512_add_epi64(set_int(x), _mm512_setr_epi64(1, 3, 5, 7, 9, 11, 13, 15)); }
  static Int exclusive(Int a, Int b) { return _mm512_xor_si512(a, b); }
  static Int multiply(Int a, Int b) { return _mm512_mul_epu32(a, b); }
  static Int high(Int a) { return _mm512_srli_epi64(a, 32); }
  static Int join(Int even, Int odd) { return _mm512_mask_blend_epi32(0xAAAA, even, _mm512_slli_epi64(odd, 32)); }
  static uint32_t at_most(Int a, uint32_t b) { return _mm512_cmple_epu32_mask(a, _mm512_set1_epi32(int(b))); }
  static void store_int(uint32_t* p, Int a) { _mm512_storeu_si512(p, a); }
};

#include "cpu/kernels_impl.h"

}  // namespace

const ChunkKernels kAvx512Kernels = table("avx512", normals_avx512);

}  // namespace dlmk
#endif
