// absorbing_step_ and uniform_step_: the route of each position first, then the rows that a route asks for.
#include "cpu/scoring.h"

namespace dlmk {
namespace {

int64_t draw_token(const Row& row, const RowParameters& parameters, Scratch& scratch) {
  return finish_row(row, parameters, scratch.chunks.data(), scratch, 1).token;
}

void read_maxima(const Row& row, Scratch& scratch) {
  chunk_statistics(row, 0, row.chunks(), false, scratch, scratch.chunks.data());
}

void step_absorbing(const DlmkScoreArgs& score, const DlmkAbsorbingArgs& a) {
  const Scoring scoring(score);
  bool* changed = reinterpret_cast<bool*>(a.changed);
  std::vector<int64_t> leaving;
  for (int64_t r = 0; r < score.B * score.L; ++r) {
    const int64_t b = r / score.L, l = r % score.L;
    int64_t& token = element<int64_t>(a.tokens, b, l);
    const bool masked = token == a.mask_id;
    const double sigma = at<double>(a.sigma, b, l);
    const double p = masked ? unmask_probability(address<double>(a.alpha_t)[b], address<double>(a.alpha_s)[b], sigma) : sigma;
    changed[r] = scoring.eligible(r) && route_uniform(scoring.key(r)) < p;
    if (!changed[r]) continue;
    if (masked)
      leaving.push_back(r);
    else
      token = a.mask_id;
  }
  over_rows(leaving, score.V, score.threads, [&](int64_t r, Scratch& scratch) {
    const Row row = scoring.row(r);
    read_maxima(row, scratch);
    element<int64_t>(a.tokens, r / score.L, r % score.L) = draw_token(row, scoring.parameters(r), scratch);
  });
}

// Probability of a token under the sampling distribution, by the maxima of the row; NaN where the row has no distribution.
double probability_of(int64_t token, const Row& row, const RowParameters& parameters, Scratch& scratch) {
  if (!(parameters.temperature > 0)) return draw_token(row, parameters, scratch) == token ? 1 : 0;
  float m = -INFINITY;
  for (int64_t c = 0; c < row.chunks(); ++c) {
    if (scratch.chunks[size_t(c)].max != scratch.chunks[size_t(c)].max) return NAN;
    m = std::max(m, scratch.chunks[size_t(c)].max);
  }
  if (!std::isfinite(m)) return NAN;
  const RowStats stats = {m, 0, 0, 0, 0};  // its maximum is all that the filters ask for
  const float keep = lowest_kept(row, stats, parameters, scratch.chunks.data(), scratch);
  const Sampling sampling = {m, parameters.temperature, keep, parameters.key};
  double total = 0;
  for (int64_t c = 0; c < row.chunks(); ++c) {
    const float max = scratch.chunks[size_t(c)].max;
    if (max >= keep && (double(max) - m) / parameters.temperature > -kVanishing)
      total += kernels().exact_sum(row.view(c, scratch.buffer.data()), row.size(c), sampling);
  }
  if (token < 0 || token >= row.V) return 0;
  const float x = row.view(token / kChunk, scratch.buffer.data())[token % kChunk];
  return x >= keep ? std::exp((double(x) - m) / parameters.temperature) / total : 0;
}

void step_uniform(const DlmkScoreArgs& score, const DlmkUniformArgs& a) {
  const Scoring scoring(score);
  bool* changed = reinterpret_cast<bool*>(a.changed);
  const auto step_of = [&](int64_t r) {
    return uniform_step(address<double>(a.alpha_t)[r / score.L], address<double>(a.alpha_s)[r / score.L], score.V);
  };
  std::vector<int64_t> open;
  for (int64_t r = 0; r < score.B * score.L; ++r) {
    changed[r] = false;
    if (scoring.eligible(r) && route(step_of(r), route_uniform(scoring.key(r)), 0) != Route::kStay) open.push_back(r);
  }
  over_rows(open, score.V, score.threads, [&](int64_t r, Scratch& scratch) {
    const Row row = scoring.row(r);
    const RowParameters parameters = scoring.parameters(r);
    const UniformStep step = step_of(r);
    const double u = route_uniform(parameters.key);
    int64_t& token = element<int64_t>(a.tokens, r / score.L, r % score.L);
    int64_t clean = token;
    Route taken = Route::kNoise;
    if (a.leave_one_out) {
      read_maxima(row, scratch);
      taken = route(step, u, probability_of(token, row, parameters, scratch));
      if (taken == Route::kClean) clean = draw_token(row, parameters, scratch);
    } else if (route(step, u, 1) != Route::kNoise) {  // noise whatever x_0 is: not read
      read_maxima(row, scratch);
      clean = draw_token(row, parameters, scratch);
      taken = route(step, u, clean == token);
    }
    const int64_t after = taken == Route::kNoise   ? keyed_integer(parameters.key, score.V, kStateStream)
                          : taken == Route::kClean ? clean
                                                   : token;
    changed[r] = after != token;
    token = after;
  });
}

}  // namespace
}  // namespace dlmk

int dlmk_absorbing_step(const DlmkScoreArgs* score, const DlmkAbsorbingArgs* args) {
  return dlmk::status_of([&] { dlmk::step_absorbing(*score, *args); });
}

int dlmk_uniform_step(const DlmkScoreArgs* score, const DlmkUniformArgs* args) {
  return dlmk::status_of([&] { dlmk::step_uniform(*score, *args); });
}
