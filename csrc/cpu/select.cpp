// select_positions, commit_, denoise_step_ and keyed_uniform.
#include <vector>

#include "cpu/arguments.h"
#include "cpu/parallel.h"
#include "cpu/single_thread.h"

namespace dlmk {
namespace {

SelectRules rules_of(const DlmkSelectArgs& a, int64_t b) {
  const auto value = [b](const DlmkRows& rule) { return rule.data ? at<float>(rule, b, 0) : 0.0f; };
  const int64_t at_least = at<int64_t>(a.at_least, b, 0);
  return {a.quota.data ? std::max(at_least, at<int64_t>(a.quota, b, 0)) : at_least,
          a.threshold.data != 0,
          a.strict != 0,
          a.factor.data != 0,
          a.entropy_bound.data != 0,
          value(a.threshold),
          value(a.factor),
          value(a.entropy_bound)};
}

void select(const DlmkSelectArgs& a, int64_t b, uint64_t* keys) {
  SingleThread block;
  select_row(
      block, rules_of(a, b), a.L, [&](int64_t l) { return at<bool>(a.eligible, b, l); },
      [&](int64_t l) { return at<float>(a.score, b, l); }, [&](int64_t l) { return at<float>(a.entropy, b, l); }, keys,
      reinterpret_cast<bool*>(a.selected) + b * a.L);
}

}  // namespace
}  // namespace dlmk

using dlmk::at;

int dlmk_select_positions(const DlmkSelectArgs* args) {
  return dlmk::status_of([&] {
    const int threads = int(std::min<int64_t>(args->threads, args->B * args->L / 8192 + 1));
    dlmk::parallel(threads, [&](int thread, int team) {
      std::vector<uint64_t> keys(static_cast<size_t>(args->L));
      for (int64_t b = thread; b < args->B; b += team) dlmk::select(*args, b, keys.data());
    });
  });
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
    out[i] = dlmk::keyed_uniform({seed[i], row_ids[i], step[i]}, uint32_t(stream));
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
        const dlmk::DrawKey key = dlmk::draw_key(score.seed, score.row_ids, score.step, b, l);
        ranked[b * L + l] = score_kind == DLMK_RANDOM ? dlmk::random_score(key) : -entropy[b * L + l];
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
