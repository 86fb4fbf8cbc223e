// The C ABI of the CPU kernels. Pointers are addresses in int64 fields, so that a caller fills one integer array.
#pragma once

#include "common/rows.h"

#define DLMK_ABI_VERSION 1

#pragma GCC visibility push(default)
extern "C" {

enum DlmkDtype { DLMK_F32 = 0, DLMK_BF16 = 1, DLMK_F16 = 2 };
enum DlmkScore { DLMK_CONFIDENCE = 0, DLMK_MARGIN = 1, DLMK_NEG_ENTROPY = 2, DLMK_RANDOM = 3 };
enum DlmkStatus { DLMK_OK = 0, DLMK_OUT_OF_MEMORY = 1 };

struct DlmkScoreArgs {
  int64_t logits, dtype, B, L, V, stride_b, stride_l;  // the last dimension is contiguous
  DlmkRows temperature;                                // float
  DlmkRows top_k;                                      // int64
  DlmkRows top_p;                                      // float
  DlmkRows seed, row_ids, step;                        // int64
  int64_t suppress_ids, suppress_count;                // int64 [S]
  DlmkRows eligible;                                   // bool
  int64_t sampling_confidence, top_p_first, threads;
  int64_t token, confidence, margin, entropy, logsumexp;  // outputs [B, L], contiguous
};

struct DlmkSelectArgs {
  int64_t B, L;
  DlmkRows score;     // float
  DlmkRows eligible;  // bool
  int64_t quota, threshold, factor, entropy_bound;  // [B] contiguous: int64, float, float, float; 0: absent
  DlmkRows entropy;                                 // float
  int64_t at_least;                                 // int64 [B]
  int64_t strict, threads;
  int64_t selected;  // output bool [B, L], contiguous
};

int dlmk_abi_version();
// "scalar", "avx2" or "avx512": what the processor offers, unless DLM_KERNELS_CPU_ISA asked for less.
const char* dlmk_isa();
// Why DLM_KERNELS_CPU_ISA could not be followed; empty if it could.
const char* dlmk_isa_error();
// The OpenMP runtime that the process already has. Without it everything runs on the calling thread.
void dlmk_set_openmp(void* gomp_parallel, void* get_thread_num, void* get_num_threads);

int dlmk_score_tokens(const DlmkScoreArgs* args);
int dlmk_select_positions(const DlmkSelectArgs* args);
void dlmk_commit(int64_t* tokens, int64_t tokens_b, int64_t tokens_l, const int64_t* proposal, int64_t proposal_b,
                 int64_t proposal_l, const bool* selected, int64_t selected_b, int64_t selected_l, int64_t B, int64_t L);
// score -> select -> commit. select.score, select.eligible and select.entropy are filled in here; eligible_out [B, L] and the
// five score outputs are the caller's scratch.
int dlmk_denoise_step(const DlmkScoreArgs* score, const DlmkSelectArgs* select, int64_t* tokens, int64_t tokens_b,
                      int64_t tokens_l, int64_t mask_id, int64_t score_kind, bool* eligible_out, float* ranked,
                      int32_t* committed, int32_t* remaining);
void dlmk_keyed_uniform(const int64_t* seed, const int64_t* row_ids, const int64_t* step, int64_t n, int64_t stream,
                        float* out);
// For tests: the portable functions, n values each. kind: 0 log, 1 exp, 2 uniform, 3 gumbel (of 32-bit words).
void dlmk_portable(int64_t kind, const float* x, const uint32_t* words, int64_t n, float* out);
// For tests: Philox words of n blocks.
void dlmk_philox(const uint32_t* counter, const uint32_t* key, int64_t n, uint32_t* out);
}
#pragma GCC visibility pop
