// Rows of logits and what is drawn from them, by the arguments that score_tokens and the steps share.
#pragma once

#include "cpu/arguments.h"
#include "cpu/parallel.h"
#include "cpu/row.h"

namespace dlmk {

class Scoring {
 public:
  explicit Scoring(const DlmkScoreArgs& args) : a_(args) {
    const int64_t* ids = address<int64_t>(a_.suppress_ids);
    if (ids) suppressed_.assign(ids, ids + a_.suppress_count);
    std::sort(suppressed_.begin(), suppressed_.end());
  }

  // Rows are counted through [B, L].
  bool eligible(int64_t r) const { return !a_.eligible.data || at<bool>(a_.eligible, r / a_.L, r % a_.L); }

  Row row(int64_t r) const {
    const int64_t offset = r / a_.L * a_.stride_b + r % a_.L * a_.stride_l;
    Row row{nullptr, a_.dtype, a_.V, &suppressed_};
    row.logits = address<char>(a_.logits) + offset * row.width();
    return row;
  }

  DrawKey key(int64_t r) const { return draw_key(a_.seed, a_.row_ids, a_.step, r / a_.L, r % a_.L); }

  RowParameters parameters(int64_t r) const {
    const int64_t b = r / a_.L, l = r % a_.L;
    return {at<float>(a_.temperature, b, l), at<float>(a_.top_p, b, l), at<int64_t>(a_.top_k, b, l), key(r),
            a_.sampling_confidence != 0, a_.top_p_first != 0};
  }

 private:
  const DlmkScoreArgs& a_;
  std::vector<int64_t> suppressed_;
};

// body(row, scratch) for each of `rows` of V logits, spread over threads.
template <class Body>
void over_rows(const std::vector<int64_t>& rows, int64_t V, int64_t threads, Body body) {
  const int64_t count = int64_t(rows.size());
  // A thread is worth waking for some ten thousand logits.
  const int64_t work = count * V / 16384 + 1;
  parallel(int(std::min<int64_t>({threads, count, work})), [&](int thread, int team) {
    Scratch scratch;
    scratch.chunks.resize(size_t((V + kChunk - 1) / kChunk));
    for (int64_t i = thread; i < count; i += team) body(rows[size_t(i)], scratch);
  });
}

}  // namespace dlmk
