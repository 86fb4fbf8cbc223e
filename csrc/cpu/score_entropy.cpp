// score_entropy_step_: a first pass over a row takes maxima and the sum of the scores, a second draws where a state may win.
#include <numeric>

#include "cpu/scoring.h"

namespace dlmk {
namespace {

// Up to here no score overflows.
constexpr float kHighest = 700.0f;

class Stepper {
 public:
  explicit Stepper(const DlmkScoreEntropyArgs& args) : a_(args) {}

  void run() {
    bool* changed = reinterpret_cast<bool*>(a_.changed);
    std::vector<int64_t> live;
    for (int64_t r = 0; r < a_.B * a_.L; ++r) {
      changed[r] = false;
      const bool moves = a_.mask_id < 0 || token(r) == a_.mask_id;
      if (moves && (!a_.eligible.data || at<bool>(a_.eligible, r / a_.L, r % a_.L))) live.push_back(r);
    }
    over_rows(live, a_.V, a_.threads, [&](int64_t r, Scratch& scratch) {
      const int64_t after = draw(r, scratch);
      changed[r] = after != token(r);
      token(r) = after;
    });
  }

 private:
  int64_t& token(int64_t r) const { return element<int64_t>(a_.tokens, r / a_.L, r % a_.L); }

  ScoreWeights weights(int64_t r, double sum) const {
    const double delta = address<double>(a_.delta_sigma)[r / a_.L];
    return a_.mask_id < 0 ? uniform_weights(delta, a_.analytic, a_.V, sum)
                          : absorb_weights(delta, a_.analytic, a_.denoise, sum);
  }

  int64_t draw(int64_t r, Scratch& scratch) const {
    const std::vector<int64_t> here = {token(r)};  // its own score is not read
    Row row{nullptr, a_.dtype, a_.V, &here};
    row.logits = address<char>(a_.log_score) + (r / a_.L * a_.stride_b + r % a_.L * a_.stride_l) * row.width();
    const DrawKey key = draw_key(a_.seed, a_.row_ids, a_.step, r / a_.L, r % a_.L);

    float m = -INFINITY;
    double sum = 0;
    const bool bounded = read(row, scratch, &m, &sum);
    const ScoreWeights w = weights(r, sum);
    if (!bounded || !std::isfinite(sum) || !std::isfinite(w.stay) || !std::isfinite(weight_of(w, std::exp(double(m)))))
      return draw_one_by_one(row, r, key, scratch);

    Best best = {-INFINITY, 0};  // of states none of which has a weight, the first
    const Words words = keyed_words(key, kGumbelStream, uint32_t(here[0] >> 2));
    const float stay = log_weight(w.stay) + gumbel_from_word(words.w[here[0] & 3]);
    if (stay > best.value) best = {stay, here[0]};
    const StateDraw state = {w, float(std::log(w.factor / w.divisor * w.transition)), key};
    std::vector<int64_t>& order = scratch.order;
    order.resize(size_t(row.chunks()));
    std::iota(order.begin(), order.end(), 0);
    highest_first(scratch.chunks.data(), order);
    for (int64_t c : order) {
      const float max = scratch.chunks[size_t(c)].max, heaviest = log_weight(weight_of(w, std::exp(double(max))));
      if (heaviest == -INFINITY || heaviest + kLargestGumbel < best.value) break;  // nor can a later chunk win
      kernels().draw_state(row.view(c, scratch.buffer.data()), row.size(c), c * kChunk, max, state, &best);
    }
    return best.index;
  }

  // Maxima of the chunks and of the row, and the sum of the scores if the step has a use for it. False: some score is NaN or
  // might overflow.
  bool read(const Row& row, Scratch& scratch, float* m, double* sum) const {
    const Sampling plain = {0, 1, -INFINITY, {}};
    for (int64_t c = 0; c < row.chunks(); ++c) {
      float& max = scratch.chunks[size_t(c)].max;
      const float* x = row.view(c, scratch.buffer.data(), &max);
      if (!(max <= kHighest)) return false;
      *m = std::max(*m, max);
      if (!a_.denoise && max > *m - kVanishing) *sum += kernels().exact_sum(x, row.size(c), plain);
    }
    return true;
  }

  // The definition: no state is left out, NaN wins as in argmax.
  int64_t draw_one_by_one(const Row& row, int64_t r, const DrawKey& key, Scratch& scratch) const {
    double sum = 0;
    for (int64_t c = 0; c < row.chunks(); ++c) {
      const float* x = row.view(c, scratch.buffer.data());
      for (int64_t i = 0; i < row.size(c); ++i) sum += std::exp(double(x[i]));
    }
    const ScoreWeights w = weights(r, sum);
    Best best = {-INFINITY, 0};
    for (int64_t c = 0; c < row.chunks(); ++c) {
      const float* x = row.view(c, scratch.buffer.data());
      for (int64_t i = 0; i < row.size(c); ++i) {
        const int64_t y = c * kChunk + i;
        const double weight = y == token(r) ? w.stay : weight_of(w, std::exp(double(x[i])));
        const Words words = keyed_words(key, kGumbelStream, uint32_t(y >> 2));
        const float value = log_weight(weight) + gumbel_from_word(words.w[y & 3]);
        if (value != value) return y;
        if (value > best.value) best = {value, y};
      }
    }
    return best.index;
  }

  const DlmkScoreEntropyArgs& a_;
};

}  // namespace
}  // namespace dlmk

int dlmk_score_entropy_step(const DlmkScoreEntropyArgs* args) {
  return dlmk::status_of([&] { dlmk::Stepper(*args).run(); });
}
