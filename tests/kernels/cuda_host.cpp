// The CUDA kernels compiled for the host, for cuda_host.py: their bodies over emulated blocks.
#include "cuda/commit.cu"
#include "cuda/denoise_step.cu"
#include "cuda/gather_rows.cu"
#include "cuda/keyed_uniform.cu"
#include "cuda/revoke.cu"
#include "cuda/scatter_rows.cu"
#include "cuda/score_tokens.cu"
#include "cuda/select_positions.cu"

// Philox words and portable functions through the same headers.
extern "C" void host_philox(const uint32_t* counter, const uint32_t* key, int64_t n, uint32_t* out) {
  for (int64_t i = 0; i < n; ++i) {
    const dlmk::Words words = dlmk::philox({{counter[4 * i], counter[4 * i + 1], counter[4 * i + 2], counter[4 * i + 3]}},
                                           key[2 * i], key[2 * i + 1]);
    for (int k = 0; k < 4; ++k) out[4 * i + k] = words.w[k];
  }
}
