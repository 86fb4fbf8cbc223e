// gaussian_step_: rows over threads, a chunk of dimensions at a time, fp32 in the order of the reference's roundings.
#include "common/posterior.h"
#include "cpu/scoring.h"

namespace dlmk {
namespace {

// fp32 view of n dimensions from `d` on: the tensor itself, or `buffer` after conversion.
const float* load(const DlmkVectors& v, int64_t b, int64_t l, int64_t d, int64_t n, float* buffer) {
  const int64_t width = v.dtype == DLMK_F32 ? 4 : 2;
  const char* source = address<char>(v.data) + (b * v.stride_b + l * v.stride_l + d * v.stride_d) * width;
  if (v.stride_d == 1 || n == 1) return kernels().load(source, v.dtype, n, buffer, nullptr);
  for (int64_t i = 0; i < n; ++i) {
    const float* x = kernels().load(source + i * v.stride_d * width, v.dtype, 1, buffer + i, nullptr);
    buffer[i] = *x;
  }
  return buffer;
}

void store(const DlmkVectors& v, int64_t b, int64_t l, int64_t d, int64_t n, const float* x) {
  const int64_t width = v.dtype == DLMK_F32 ? 4 : 2;
  char* target = reinterpret_cast<char*>(v.data) + (b * v.stride_b + l * v.stride_l + d * v.stride_d) * width;
  if (v.stride_d == 1) return kernels().store(x, n, v.dtype, target);
  for (int64_t i = 0; i < n; ++i) kernels().store(x + i, 1, v.dtype, target + i * v.stride_d * width);
}

GaussianStep step_of_row(const DlmkGaussianArgs& a, int64_t b) {
  const auto level = [&](int64_t values) { return address<double>(values)[b]; };
  GaussianStep step =
      gaussian_step(level(a.alpha_t), level(a.sigma_t), level(a.alpha_s), level(a.sigma_s), level(a.eta));
  if (a.denoised_before.data)
    step.half = second_order_half(level(a.alpha_t), level(a.sigma_t), level(a.alpha_s), level(a.sigma_s),
                                  level(a.alpha_before), level(a.sigma_before));
  return step;
}

// What a thread needs for a chunk.
struct Buffers {
  std::vector<float> x = std::vector<float>(kChunk), denoised = x, before = x, noise = x, after = x;
};

void step_position(const DlmkGaussianArgs& a, const GaussianStep& step, int64_t b, int64_t l, Buffers& buffers) {
  const DrawKey key = draw_key(a.seed, a.row_ids, a.step, b, l);
  float* after = buffers.after.data();
  for (int64_t d = 0; d < a.D; d += kChunk) {
    const int64_t n = std::min(kChunk, a.D - d);
    const float* x = load(a.x, b, l, d, n, buffers.x.data());
    const float* data = load(a.denoised, b, l, d, n, buffers.denoised.data());
    if (a.denoised_before.data) {
      const float* before = load(a.denoised_before, b, l, d, n, buffers.before.data());
      for (int64_t i = 0; i < n; ++i) after[i] = step.x * x[i] + step.data * (data[i] + step.half * (data[i] - before[i]));
    } else {
      for (int64_t i = 0; i < n; ++i) after[i] = step.x * x[i] + step.data * data[i];
    }
    if (a.noisy) {
      float* noise = buffers.noise.data();
      kernels().normals(key, d, n, noise);
      for (int64_t i = 0; i < n; ++i) after[i] = after[i] + step.spread * noise[i];
    }
    store(a.x, b, l, d, n, after);
  }
}

void step_gaussian(const DlmkGaussianArgs& a) {
  const int64_t work = a.B * a.L * a.D / 32768 + 1;  // a thread is worth waking for some ten thousand numbers
  parallel(int(std::min(a.threads, work)), [&](int thread, int team) {
    Buffers buffers;
    GaussianStep step{};
    int64_t row = -1;
    for (int64_t r = a.B * a.L * thread / team; r < a.B * a.L * (thread + 1) / team; ++r) {
      const int64_t b = r / a.L, l = r % a.L;
      if (a.eligible.data && !at<bool>(a.eligible, b, l)) continue;
      if (b != row) step = step_of_row(a, row = b);
      step_position(a, step, b, l, buffers);
    }
  });
}

}  // namespace
}  // namespace dlmk

int dlmk_gaussian_step(const DlmkGaussianArgs* args) {
  return dlmk::status_of([&] { dlmk::step_gaussian(*args); });
}
