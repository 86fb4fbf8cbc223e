// What the kernels are launched with: structs of 64-bit integers, filled by dlm_kernels/cuda/ field by field. Pointers are
// addresses; per-row tensors come with their strides, in elements, and have address 0 where they are absent.
#pragma once

#include "common/rows.h"

struct ScoreArguments {
  int64_t logits, dtype, B, L, V, stride_b, stride_l;  // [B, L, V], the last dimension contiguous; dtype: 0 fp32, 1 bf16, 2 fp16
  DlmkRows temperature;                                // float
  DlmkRows top_k;                                      // int64
  DlmkRows top_p;                                      // float
  DlmkRows seed, row_ids, step;                        // int64
  int64_t suppress_ids, suppress_count, suppress_stride;  // int64 [S]
  DlmkRows eligible;                                      // bool
  int64_t sampling_confidence, top_p_first;
  DlmkRows tokens;  // int64; with them only rows whose token is mask_id are scored
  int64_t mask_id;
  int64_t splits;  // blocks that share a row
  int64_t parts;   // scratch of both launches, see parts.h
};

struct ScoreOutputs {
  int64_t token, confidence, margin, entropy, logsumexp;  // [B, L] contiguous: int64 and four times float
};

struct ScoreTokensArguments {
  ScoreArguments score;
  ScoreOutputs out;
};

struct RuleArguments {
  DlmkRows quota, threshold, factor, entropy_bound, at_least;  // [B]: int64, float, float, float, int64
  int64_t strict;
  int64_t keys;  // scratch: uint64 [B, padded(L)], for rows of more than kSharedKeys positions
};

struct SelectArguments {
  int64_t B, L;
  DlmkRows score, eligible, entropy;  // float, bool, float
  RuleArguments rules;
  int64_t selected;  // out: bool [B, L] contiguous
};

struct DenoiseArguments {
  ScoreArguments score;
  RuleArguments rules;
  int64_t score_kind;                 // 0 confidence, 1 margin, 2 neg_entropy, 3 random
  int64_t proposal, ranked, entropy;  // scratch [B, L]: int64, float, float
  int64_t live;                       // scratch bool [B, L]
  int64_t committed, remaining;       // out: int32 [B]
  int64_t confidence, selected;       // out: float and bool [B, L]
};

struct RevokeArguments {
  int64_t B, L;
  DlmkRows tokens;  // int64, written
  int64_t mask_id;
  DlmkRows confidence, eligible;         // float, bool
  DlmkRows threshold, quota, committed;  // [B]: float, int64, int64
  DlmkRows probability;                  // float [B, L]
  DlmkRows seed, row_ids, step;          // int64 [B, L]
  int64_t keys;                          // scratch as in RuleArguments
  int64_t remasked, revoked;             // out: int32 [B], bool [B, L]
};

struct CommitArguments {
  int64_t B, L;
  DlmkRows tokens, proposal, selected;
};

struct UniformArguments {
  int64_t count, stream, seed, row_ids, step, out;  // int64 [count], three times, and float [count]
};

constexpr int kMostDims = 4;

// Rows of units, 1 to 16 bytes each, with strides in units; a row has up to kMostDims dimensions, the first one outermost.
struct CopyArguments {
  int64_t unit, M, N;
  DlmkRows positions;  // int64 [B, M]
  int64_t sizes[kMostDims];
  int64_t source, source_b, source_n, source_strides[kMostDims];
  int64_t target, target_b, target_n, target_strides[kMostDims];
};
