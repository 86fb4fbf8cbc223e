// How a position moves from time t to an earlier time s: which route it takes, with which weight it becomes which state.
// fp64 where differences of close numbers decide who jumps. The order of roundings is that of dlm_kernels/reference/<op>.py, so
// compile without contraction (-ffp-contract=off, nvcc -fmad=false).
#pragma once

#if !defined(__CUDACC_RTC__)
#include <cmath>
#endif

#include "philox.h"

namespace dlmk {

// Streams of random numbers; dlm_kernels/reference/philox.py lists all of them.
constexpr uint32_t kRouteStream = 3, kStateStream = 4, kNormalStream = 5;

// The uniform number, fp32 as everywhere, that is compared with fp64 probabilities.
DLMK_FN double route_uniform(const DrawKey& key) {
  return double(uniform_from_word(keyed_words(key, kRouteStream, 0).w[0]));
}

// One integer in [0, below), `below` at most 2^31.
DLMK_FN int64_t keyed_integer(const DrawKey& key, int64_t below, uint32_t stream) {
  return int64_t(uint64_t(keyed_words(key, stream, 0).w[0]) * uint64_t(below) >> 32);
}

// ---- Absorbing state: MDLM, arXiv:2406.07524; sigma > 0: ReMDM, arXiv:2503.00307.

// P(x_s is a token | x_t = mask). Nothing is masked at alpha_t = 1; a mask found there all the same is filled.
DLMK_FN double unmask_probability(double alpha_t, double alpha_s, double sigma) {
  return alpha_t < 1 ? (alpha_s - (1 - sigma) * alpha_t) / (1 - alpha_t) : 1.0;
}

// ---- Uniform state: D3PM, arXiv:2107.03006; UDLM, arXiv:2412.10193; Duo, arXiv:2506.10892.

enum class Route { kStay, kClean, kNoise };  // x_t, the drawn x_0, any state

// q(x_s | x_t, x_0) as a mixture of the three routes. `agreement` is [x_0 = x_t] for a denoiser that gives p(x_0 | x_t), and
// p(x_t) for one that has not seen x_t (leave one out).
struct UniformStep {
  double alpha_t, clean, noise, states;
};

DLMK_FN UniformStep uniform_step(double alpha_t, double alpha_s, int64_t states) {
  const double ratio = alpha_s > 0 ? alpha_t / alpha_s : 1.0;  // no signal at either time: no change
  return {alpha_t, alpha_s - alpha_t, (1 - ratio) * (1 - alpha_s), double(states)};
}

// The rare routes come first, where the uniform numbers are finest. More agreement never leads to an earlier route, so what stays
// without agreement stays with any.
DLMK_FN Route route(const UniformStep& step, double u, double agreement) {
  const double at = u * (step.alpha_t * step.states * agreement + 1 - step.alpha_t);
  return at < step.noise ? Route::kNoise : at < step.noise + step.clean ? Route::kClean : Route::kStay;
}

// ---- Score entropy: SEDD, arXiv:2310.16834.

// Weight of staying, and what gives the weight of becoming y != x_t from its score s. What is negative counts as 0.
struct ScoreWeights {
  double stay, factor, divisor, offset, transition;
};

// A factor and a divisor because either may be 1, and then changes no bit.
DLMK_FN double weight_of(const ScoreWeights& w, double s) { return (s * w.factor / w.divisor - w.offset) * w.transition; }

// `sum` over y != mask of the scores: a mask becomes y with probability r s(y), r the rate of the step. The last step (denoise)
// leaves no mask.
DLMK_FN ScoreWeights absorb_weights(double delta, bool analytic, bool denoise, double sum) {
  if (denoise) return {0, 1, 1, 0, 1};
  const double rate = analytic ? expm1(delta) : delta;
  return {1 - rate * sum, rate, 1, 0, 1};
}

// `sum` over y != x_t of the scores. Euler: 1{y = x_t} + delta_sigma times the reverse rate. Analytic: p(x_s = y) / p(x_t), by
// undoing the noise of the step, times q(x_t | x_s = y); the score of x_t itself is 1.
DLMK_FN ScoreWeights uniform_weights(double delta, bool analytic, int64_t states, double sum) {
  const double n = double(states);
  if (!analytic) return {1 - delta / n * sum, delta / n, 1, 0, 1};
  const double e = exp(-delta), noise = (1 - e) / n, offset = (1 - e) / (n * e) * (sum + 1);
  return {(1 / e - offset) * (noise + e), 1, e, offset, noise};
}

// What Gumbel noise is added to. NaN stays NaN.
DLMK_FN float log_weight(double weight) { return float(log(weight < 0 ? 0.0 : weight)); }

// ---- Gaussian: DDIM, arXiv:2010.02502; DPM-Solver++ (2M), arXiv:2211.01095.

// x_s = x x_t + data (D + half (D - D_before)) + spread z.
struct GaussianStep {
  float x, data, spread, half;
};

DLMK_FN double positive_root(double square) { return sqrt(square < 0 ? 0.0 : square); }

DLMK_FN GaussianStep gaussian_step(double alpha_t, double sigma_t, double alpha_s, double sigma_s, double eta) {
  const double ratio = alpha_s > 0 ? alpha_t / alpha_s : 1.0;
  // Standard deviation of q(x_s | x_t, x_0), times eta; what is left of sigma_s points along the predicted noise.
  const double added = positive_root(sigma_t * sigma_t - ratio * ratio * (sigma_s * sigma_s));
  const double spread = eta * sigma_s * added / sigma_t;
  const double direction = positive_root(sigma_s * sigma_s - spread * spread);
  return {float(direction / sigma_t), float(alpha_s - direction * alpha_t / sigma_t), float(spread), 0};
}

// 1 / 2r, r = h_before / h: half a step along the last change of the prediction. 0 where sigma_s = 0 makes h infinite.
DLMK_FN float second_order_half(double alpha_t, double sigma_t, double alpha_s, double sigma_s, double alpha_before,
                                double sigma_before) {
  const double at_t = log(alpha_t) - log(sigma_t);
  const double h = log(alpha_s) - log(sigma_s) - at_t, h_before = at_t - (log(alpha_before) - log(sigma_before));
  const double half = h / (2 * h_before);
  return half - half == 0 ? float(half) : 0.0f;
}

// sin and cos of 2 pi u, u in (0, 1): the nearest quarter turn is taken off exactly; the rest by Cephes' polynomials.
DLMK_FN void sine_cosine_of_turn(float u, float* sine, float* cosine) {
  const int quarter = int(u * 4.0f + 0.5f);
  const float x = (u - float(quarter) * 0.25f) * 6.2831853071795864f, z = x * x;
  float s = -1.9515295891e-4f * z + 8.3321608736e-3f;
  s = (s * z - 1.6666654611e-1f) * z * x + x;
  float c = 2.443315711809948e-5f * z - 1.388731625493765e-3f;
  c = (c * z + 4.166664568298827e-2f) * z * z - 0.5f * z + 1.0f;
  const float first = quarter & 1 ? c : s, second = quarter & 1 ? s : c;
  *sine = quarter & 2 ? -first : first;
  *cosine = (quarter + 1) & 2 ? -second : second;
}

// Two standard normal numbers from two words (Box-Muller).
DLMK_FN void normal_pair(uint32_t first, uint32_t second, float* a, float* b) {
  const float radius = sqrtf(2.0f * exponential_from_uniform(uniform_from_word(first)));
  float sine, cosine;
  sine_cosine_of_turn(uniform_from_word(second), &sine, &cosine);
  *a = radius * cosine;
  *b = radius * sine;
}

}  // namespace dlmk
