// select_positions, commit_, denoise_step_ and keyed_uniform.
#include <algorithm>
#include <cmath>
#include <new>
#include <vector>

#include "common/philox.h"
#include "cpu/dlmk.h"
#include "cpu/parallel.h"

namespace dlmk {
namespace {

template <class T>
T at(const DlmkRows& rows, int64_t b, int64_t l) {
  return reinterpret_cast<const T*>(rows.data)[b * rows.stride_b + l * rows.stride_l];
}

template <class T>
const T* address(int64_t value) {
  return reinterpret_cast<const T*>(value);
}

// Ascending keys are positions from best to worst: score descending, then position; NaN counts as -inf.
uint64_t rank_key(float score, int64_t position) {
  if (score != score) score = -INFINITY;
  return uint64_t(~ordered_bits(score)) << 32 | uint64_t(position);
}

class RowSelector {
 public:
  RowSelector(const DlmkSelectArgs& args, int64_t b, std::vector<uint64_t>& keys)
      : a_(args), b_(b), keys_(keys), out_(reinterpret_cast<bool*>(args.selected) + b * args.L) {}

  void run() {
    std::fill(out_, out_ + a_.L, false);
    int64_t count = 0;
    for (int64_t l = 0; l < a_.L; ++l) count += eligible(l);
    if (count == 0) return;
    int64_t best = address<int64_t>(a_.at_least)[b_];
    if (a_.quota) best = std::max(best, address<int64_t>(a_.quota)[b_]);
    best = std::min(best, count);
    if (best > 0 || a_.factor) {
      rank([&](int64_t l) { return at<float>(a_.score, b_, l); });
      if (a_.factor) best = std::max(best, factor_length());
      commit(best);
    }
    if (a_.threshold) above_threshold();
    if (a_.entropy_bound) {
      rank([&](int64_t l) { return -at<float>(a_.entropy, b_, l); });
      commit(entropy_length());
    }
  }

 private:
  bool eligible(int64_t l) const { return at<bool>(a_.eligible, b_, l); }
  int64_t position(size_t rank) const { return int64_t(keys_[rank] & 0xffffffffu); }

  template <class Score>
  void rank(Score score) {
    keys_.clear();
    for (int64_t l = 0; l < a_.L; ++l)
      if (eligible(l)) keys_.push_back(rank_key(score(l), l));
    std::sort(keys_.begin(), keys_.end());
  }

  void commit(int64_t best) {
    for (int64_t i = 0; i < best; ++i) out_[position(size_t(i))] = true;
  }

  void above_threshold() {
    const float threshold = address<float>(a_.threshold)[b_];
    for (int64_t l = 0; l < a_.L; ++l) {
      const float score = at<float>(a_.score, b_, l);
      if (eligible(l) && (a_.strict ? score > threshold : score >= threshold)) out_[l] = true;
    }
  }

  // The largest n with c_n >= 1 - f / (n + 1).
  int64_t factor_length() const {
    const float f = address<float>(a_.factor)[b_];
    int64_t length = 0;
    for (size_t i = 0; i < keys_.size(); ++i) {
      const float quotient = f / (float(i + 1) + 1.0f);
      if (at<float>(a_.score, b_, position(i)) >= 1.0f - quotient) length = int64_t(i) + 1;
    }
    return length;
  }

  // The largest k whose entropies without the greatest sum to the bound or less.
  int64_t entropy_length() const {
    const double bound = double(address<float>(a_.entropy_bound)[b_]);
    double sum = 0;
    int64_t length = 0;
    for (size_t i = 0; i < keys_.size(); ++i) {
      const double h = double(at<float>(a_.entropy, b_, position(i)));
      sum += h;
      if (sum - h <= bound) length = int64_t(i) + 1;
    }
    return length;
  }

  const DlmkSelectArgs& a_;
  const int64_t b_;
  std::vector<uint64_t>& keys_;
  bool* out_;
};

}  // namespace
}  // namespace dlmk

using dlmk::at;

int dlmk_select_positions(const DlmkSelectArgs* args) {
  try {
    const int threads = int(std::min<int64_t>(args->threads, args->B * args->L / 8192 + 1));
    dlmk::parallel(threads, [&](int thread, int team) {
      std::vector<uint64_t> keys;
      for (int64_t b = thread; b < args->B; b += team) dlmk::RowSelector(*args, b, keys).run();
    });
  } catch (const std::bad_alloc&) {
    return DLMK_OUT_OF_MEMORY;
  }
  return DLMK_OK;
}

void dlmk_commit(int64_t* tokens, int64_t tokens_b, int64_t tokens_l, const int64_t* proposal, int64_t proposal_b,
                 int64_t proposal_l, const bool* selected, int64_t selected_b, int64_t selected_l, int64_t B, int64_t L) {
  for (int64_t b = 0; b < B; ++b)
    for (int64_t l = 0; l < L; ++l)
      if (selected[b * selected_b + l * selected_l])
        tokens[b * tokens_b + l * tokens_l] = proposal[b * proposal_b + l * proposal_l];
}

void dlmk_keyed_uniform(const int64_t* seed, const int64_t* row_ids, const int64_t* step, int64_t n, int64_t stream,
                        float* out) {
  for (int64_t i = 0; i < n; ++i)
    out[i] = dlmk::uniform_from_word(dlmk::keyed_words({seed[i], row_ids[i], step[i]}, uint32_t(stream), 0).w[0]);
}

int dlmk_denoise_step(const DlmkScoreArgs* score_args, const DlmkSelectArgs* select_args, int64_t* tokens, int64_t tokens_b,
                      int64_t tokens_l, int64_t mask_id, int64_t score_kind, bool* eligible, float* ranked,
                      int32_t* committed, int32_t* remaining) {
  DlmkScoreArgs score = *score_args;
  const int64_t B = score.B, L = score.L;
  for (int64_t b = 0; b < B; ++b)
    for (int64_t l = 0; l < L; ++l)
      eligible[b * L + l] = tokens[b * tokens_b + l * tokens_l] == mask_id &&
                            (!score.eligible.data || at<bool>(score.eligible, b, l));
  const auto contiguous = [&](const void* data) { return DlmkRows{reinterpret_cast<int64_t>(data), L, 1}; };
  score.eligible = contiguous(eligible);
  if (int status = dlmk_score_tokens(&score)) return status;

  DlmkSelectArgs select = *select_args;
  select.eligible = score.eligible;
  select.entropy = contiguous(reinterpret_cast<const void*>(score.entropy));
  select.score = contiguous(reinterpret_cast<const void*>(score_kind == DLMK_MARGIN ? score.margin : score.confidence));
  if (score_kind == DLMK_NEG_ENTROPY || score_kind == DLMK_RANDOM) {
    const float* entropy = reinterpret_cast<const float*>(score.entropy);
    for (int64_t b = 0; b < B; ++b)
      for (int64_t l = 0; l < L; ++l) {
        const dlmk::DrawKey key = {at<int64_t>(score.seed, b, l), at<int64_t>(score.row_ids, b, l),
                                   at<int64_t>(score.step, b, l)};
        ranked[b * L + l] = score_kind == DLMK_RANDOM ? dlmk::uniform_from_word(dlmk::keyed_words(key, 1, 0).w[0])
                                                      : -entropy[b * L + l];
      }
    select.score = contiguous(ranked);
  }
  if (int status = dlmk_select_positions(&select)) return status;

  const bool* selected = reinterpret_cast<const bool*>(select.selected);
  dlmk_commit(tokens, tokens_b, tokens_l, reinterpret_cast<const int64_t*>(score.token), L, 1, selected, L, 1, B, L);
  for (int64_t b = 0; b < B; ++b) {
    int32_t chosen = 0, masked = 0;
    for (int64_t l = 0; l < L; ++l) {
      chosen += selected[b * L + l];
      masked += eligible[b * L + l];
    }
    committed[b] = chosen;
    remaining[b] = masked - chosen;
  }
  return DLMK_OK;
}

void dlmk_portable(int64_t kind, const float* x, const uint32_t* words, int64_t n, float* out) {
  for (int64_t i = 0; i < n; ++i)
    out[i] = kind == 0   ? dlmk::portable_log(x[i])
             : kind == 1 ? dlmk::portable_exp(x[i])
             : kind == 2 ? dlmk::uniform_from_word(words[i])
                         : dlmk::gumbel_from_word(words[i]);
}

void dlmk_philox(const uint32_t* counter, const uint32_t* key, int64_t n, uint32_t* out) {
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t* c = counter + 4 * i;
    const dlmk::Words words = dlmk::philox({{c[0], c[1], c[2], c[3]}}, key[2 * i], key[2 * i + 1]);
    std::copy(words.w, words.w + 4, out + 4 * i);
  }
}
