// The C ABI of the CPU kernels. Pointers are addresses in int64 fields, so that a caller fills one integer array.
#pragma once

#include "common/rows.h"

#define DLMK_ABI_VERSION 3

#pragma GCC visibility push(default)
extern "C" {

enum DlmkDtype { DLMK_F32 = 0, DLMK_BF16 = 1, DLMK_F16 = 2 };
enum DlmkScore { DLMK_CONFIDENCE = 0, DLMK_MARGIN = 1, DLMK_NEG_ENTROPY = 2, DLMK_RANDOM = 3 };
enum DlmkStatus { DLMK_OK = 0, DLMK_OUT_OF_MEMORY = 1, DLMK_OUT_OF_RANGE = 2 };

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
  DlmkRows quota, threshold, factor, entropy_bound;  // [B]: int64, float, float, float; no data: absent
  DlmkRows entropy;                                  // float
  DlmkRows at_least;                                 // int64 [B]
  int64_t strict, threads;
  int64_t selected;  // output bool [B, L], contiguous
};

struct DlmkNearestArgs {
  int64_t x, x_dtype, N, x_stride;              // [N, D], the last dimension contiguous
  int64_t table, table_dtype, V, table_stride;  // [V, D], the last dimension contiguous
  int64_t D, threads;
  int64_t ids, distance;  // outputs [N]: int64, float
};

struct DlmkTopKArgs {
  int64_t logits, dtype, B, L, V, stride_b, stride_l;  // the last dimension is contiguous
  int64_t k, threads;
  int64_t before_ids, before_log_probs, before_k;  // int64 [B, L, before_k], float [B, L, before_k + 1], contiguous; 0: absent
  int64_t kl, ids, log_probs;                      // outputs float [B, L], int64 [B, L, k], float [B, L, k + 1]
};

// Rows of `from` to rows of `to`: runs of contiguous bytes, over trailing dimensions that are alike in neither.
struct DlmkMoveArgs {
  int64_t from, from_b, from_row, to, to_b, to_row;  // addresses and strides in bytes
  DlmkRows positions;                                // int64 [B, M]
  int64_t B, M, N, run;                              // run in bytes
  int64_t dimensions, sizes, from_strides, to_strides;  // int64 [dimensions] each, outermost first, strides in bytes
  int64_t threads;
};

struct DlmkCosineArgs {
  int64_t a, a_dtype, a_stride_b, a_stride_l, b, b_dtype, b_stride_b, b_stride_l;  // [B, L, D], the last dimension contiguous
  int64_t B, L, D, threads;
  int64_t cosine;  // output float [B, L], contiguous
};

// Of the steps: tokens [B, L] are written; `changed` is an output bool [B, L], contiguous; [B] arguments are contiguous.
struct DlmkAbsorbingArgs {
  DlmkRows tokens;  // int64
  int64_t mask_id, alpha_t, alpha_s;  // double [B]
  DlmkRows sigma;                     // double
  int64_t changed;
};

struct DlmkUniformArgs {
  DlmkRows tokens;                          // int64
  int64_t alpha_t, alpha_s, leave_one_out;  // double [B]
  int64_t changed;
};

struct DlmkScoreEntropyArgs {
  int64_t log_score, dtype, B, L, V, stride_b, stride_l;  // the last dimension is contiguous
  DlmkRows tokens;                                        // int64
  int64_t mask_id;                                        // -1: the uniform graph
  int64_t delta_sigma, analytic, denoise;                 // double [B]
  DlmkRows eligible;                                      // bool
  DlmkRows seed, row_ids, step;                           // int64
  int64_t threads, changed;
};

struct DlmkRevokeArgs {
  int64_t B, L;
  DlmkRows tokens;      // int64, written
  DlmkRows confidence;  // float
  int64_t mask_id;
  DlmkRows eligible;              // bool
  int64_t threshold, quota;       // [B] contiguous: float, int64; 0: absent
  DlmkRows probability;           // float
  int64_t committed;              // int64 [B]; 0: absent
  DlmkRows seed, row_ids, step;   // int64
  int64_t remasked, revoked;      // outputs int32 [B], bool [B, L], contiguous
};

// A [B, L, D] argument: address, dtype and strides in elements. Address 0: absent.
struct DlmkVectors {
  int64_t data, dtype, stride_b, stride_l, stride_d;
};

struct DlmkGaussianArgs {
  int64_t B, L, D;
  DlmkVectors x, denoised, denoised_before;             // x is written
  int64_t alpha_t, sigma_t, alpha_s, sigma_s, eta;      // double [B] contiguous
  int64_t alpha_before, sigma_before;                   // double [B] contiguous, with denoised_before
  DlmkRows eligible;                                    // bool
  int64_t noisy;
  DlmkRows seed, row_ids, step;  // int64
  int64_t threads;
};

// Rows whose logits come in pieces of the vocabulary; hidden.h describes the state. Addresses of contiguous arrays of R.
struct DlmkHiddenArgs {
  int64_t R, V, threads, sampling_confidence, top_p_first;
  int64_t temperature, top_k, top_p, seed, row_ids, step;  // float, int64, float, int64, int64, int64
  int64_t suppress_ids, suppress_count;                    // int64 [S], ascending
  int64_t parts, held, held_count, held_size;              // double [R, 5], 8 bytes [R, held_size], int32 [R]
  int64_t contenders, todo, keep, search, bins, winners;   // int32 [R, 25], int32 [R], float [R], int64 [R, 4], int64 [R, 256],
                                                           // double [R, 5]
  int64_t token, confidence, margin, entropy, logsumexp;   // outputs
};

// What some row needs: noise or filters; filters; the highest k of a filter; top-p.
struct DlmkHiddenNeeds {
  int64_t drawn, filtered, top_k, top_p;
};

// Logits [R, n] of the vocabulary from `first` on; the last dimension is contiguous.
struct DlmkPiece {
  int64_t logits, dtype, stride, first, n;
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
int dlmk_absorbing_step(const DlmkScoreArgs* score, const DlmkAbsorbingArgs* args);  // score's outputs are not used
int dlmk_uniform_step(const DlmkScoreArgs* score, const DlmkUniformArgs* args);
int dlmk_score_entropy_step(const DlmkScoreEntropyArgs* args);
int dlmk_revoke(const DlmkRevokeArgs* args);
int dlmk_gaussian_step(const DlmkGaussianArgs* args);
// Looks at the parameters only, before there is memory for the state.
int dlmk_hidden_plan(const DlmkHiddenArgs* args, DlmkHiddenNeeds* needs);
// In this order. Every piece of the vocabulary goes through read(). While rows are searching: every piece through weigh(), then
// descend(). If rows are unsettled: every piece through draw(). merge() and merge_winners() take the state of another shard.
int dlmk_hidden_begin(const DlmkHiddenArgs* args);
int dlmk_hidden_read(const DlmkHiddenArgs* args, const DlmkPiece* piece);
int dlmk_hidden_merge(const DlmkHiddenArgs* args, const void* parts, const void* held, const int32_t* held_count);
int dlmk_hidden_filter(const DlmkHiddenArgs* args, int64_t* searching);
int dlmk_hidden_weigh(const DlmkHiddenArgs* args, const DlmkPiece* piece);  // adds to bins
int dlmk_hidden_descend(const DlmkHiddenArgs* args, int64_t* searching);
int dlmk_hidden_settle(const DlmkHiddenArgs* args, int64_t* unsettled);
int dlmk_hidden_draw(const DlmkHiddenArgs* args, const DlmkPiece* piece);
int dlmk_hidden_merge_winners(const DlmkHiddenArgs* args, const void* winners);
int dlmk_hidden_finish(const DlmkHiddenArgs* args);
void dlmk_keyed_uniform(const int64_t* seed, const int64_t* row_ids, const int64_t* step, int64_t n, int64_t stream,
                        float* out);
// DLMK_OUT_OF_RANGE: an id of before_ids is not in [0, V).
int dlmk_topk_kl(const DlmkTopKArgs* args);
int dlmk_cosine_rows(const DlmkCosineArgs* args);
// to[b, m] = from[b, positions[b, m]], zeros where the position is not in [0, N).
int dlmk_gather_rows(const DlmkMoveArgs* args);
// to[b, positions[b, m]] = from[b, m] in the order of m; positions that are not in [0, N) write nothing.
int dlmk_scatter_rows(const DlmkMoveArgs* args);
int dlmk_nearest_embedding(const DlmkNearestArgs* args);
// For tests: the portable functions, n values each. kind: 0 log, 1 exp, 2 uniform, 3 gumbel (of 32-bit words).
void dlmk_portable(int64_t kind, const float* x, const uint32_t* words, int64_t n, float* out);
// For tests: Philox words of n blocks.
void dlmk_philox(const uint32_t* counter, const uint32_t* key, int64_t n, uint32_t* out);
}
#pragma GCC visibility pop
