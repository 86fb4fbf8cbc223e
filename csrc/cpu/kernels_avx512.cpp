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
  static Float round(Float x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static Float scale(Float p, Float n) { return _mm512_scalef_ps(p, n); }
  static Float select(Mask m, Float a, Float b) { return _mm512_mask_blend_ps(m, b, a); }
  static float total(Float x) { return _mm512_reduce_add_ps(x); }
  static float highest(Float x) { return _mm512_reduce_max_ps(x); }
  static Mask none() { return 0; }
  static Mask ge(Float a, Float b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
  static Mask unordered(Float a, Float b) { return _mm512_cmp_ps_mask(a, b, _CMP_UNORD_Q); }
  static Mask either(Mask a, Mask b) { return Mask(a | b); }
  static bool any(Mask m) { return m != 0; }
  static uint32_t bits(Mask m) { return m; }
  static Int set_int(uint32_t x) { return _mm512_set1_epi32(int(x)); }
  static Int lanes() { return _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15); }
  static Int add_int(Int a, Int b) { return _mm512_add_epi32(a, b); }
  static Int exclusive(Int a, Int b) { return _mm512_xor_si512(a, b); }
  static void multiply(Int a, uint32_t b, Int* high, Int* low) {
    Int factor = set_int(b);
    Int even = _mm512_mul_epu32(a, factor);
    Int odd = _mm512_mul_epu32(_mm512_srli_epi64(a, 32), factor);
    *low = _mm512_mask_blend_epi32(0xAAAA, even, _mm512_slli_epi64(odd, 32));
    *high = _mm512_mask_blend_epi32(0xAAAA, _mm512_srli_epi64(even, 32), odd);
  }
  static uint32_t at_most(Int a, uint32_t b) { return _mm512_cmple_epu32_mask(a, set_int(b)); }
  static void store_int(uint32_t* p, Int a) { _mm512_storeu_si512(p, a); }
};

#include "cpu/kernels_impl.h"

}  // namespace

const ChunkKernels kAvx512Kernels = table("avx512");

}  // namespace dlmk
#endif
