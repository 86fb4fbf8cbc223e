// score_tokens: rows over threads, or one long row over threads.
#include <cstdlib>
#include <cstring>

#include "cpu/scoring.h"

namespace dlmk {

OpenMP openmp;

namespace {

struct Choice {
  const ChunkKernels* kernels;
  const char* error;
};

Choice choose() {
  const ChunkKernels* best = &kScalarKernels;
  const char* wanted = std::getenv("DLM_KERNELS_CPU_ISA");
  if (!wanted) wanted = "";
  if (!std::strcmp(wanted, "scalar")) return {best, ""};
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx2) best = &kAvx2Kernels;
  if (!std::strcmp(wanted, "avx2")) return {best, avx2 ? "" : "this processor has no AVX2, FMA and F16C"};
  if (avx512) best = &kAvx512Kernels;
  if (!std::strcmp(wanted, "avx512")) return {best, avx512 ? "" : "this processor has no AVX-512 F, BW, DQ and VL"};
#endif
  return {best, *wanted ? "DLM_KERNELS_CPU_ISA must be scalar, avx2 or avx512, and fit the processor" : ""};
}

const Choice& choice() {
  static const Choice chosen = choose();
  return chosen;
}

// A row this long is worth splitting over threads.
constexpr int64_t kSplit = 16 * kChunk;

class Scorer {
 public:
  explicit Scorer(const DlmkScoreArgs& args) : a_(args), scoring_(args) {
    for (int64_t r = 0; r < a_.B * a_.L; ++r) {
      if (scoring_.eligible(r))
        live_.push_back(r);
      else
        put(r, {0, 0, 0, 0, -INFINITY});
    }
  }

  void run() {
    const int threads = int(a_.threads);
    if (threads > 1 && int(live_.size()) < threads && a_.V >= kSplit) return split(threads);
    over_rows(live_, a_.V, threads, [&](int64_t index, Scratch& scratch) {
      const Row r = scoring_.row(index);
      const RowParameters p = scoring_.parameters(index);
      chunk_statistics(r, 0, r.chunks(), !reshaped(r, p), scratch, scratch.chunks.data());
      put(index, finish_row(r, p, scratch.chunks.data(), scratch, 1));
    });
  }

 private:
  void split(int threads) {
    Scratch shared;
    shared.chunks.resize(size_t((a_.V + kChunk - 1) / kChunk));
    for (int64_t index : live_) {
      const Row r = scoring_.row(index);
      const RowParameters p = scoring_.parameters(index);
      parallel(threads, [&](int thread, int team) {
        Scratch own;
        const int64_t n = r.chunks();
        chunk_statistics(r, n * thread / team, n * (thread + 1) / team, !reshaped(r, p), own, shared.chunks.data());
      });
      put(index, finish_row(r, p, shared.chunks.data(), shared, threads));
    }
  }

  void put(int64_t r, const RowResult& result) const {
    reinterpret_cast<int64_t*>(a_.token)[r] = result.token;
    reinterpret_cast<float*>(a_.confidence)[r] = result.confidence;
    reinterpret_cast<float*>(a_.margin)[r] = result.margin;
    reinterpret_cast<float*>(a_.entropy)[r] = result.entropy;
    reinterpret_cast<float*>(a_.logsumexp)[r] = result.logsumexp;
  }

  const DlmkScoreArgs& a_;
  const Scoring scoring_;
  std::vector<int64_t> live_;
};

}  // namespace

const ChunkKernels& kernels() { return *choice().kernels; }

}  // namespace dlmk

int dlmk_abi_version() { return DLMK_ABI_VERSION; }

const char* dlmk_isa() { return dlmk::kernels().name; }

const char* dlmk_isa_error() { return dlmk::choice().error; }

void dlmk_set_openmp(void* gomp_parallel, void* get_thread_num, void* get_num_threads) {
  using namespace dlmk;
  openmp.parallel = reinterpret_cast<decltype(openmp.parallel)>(gomp_parallel);
  openmp.thread = reinterpret_cast<decltype(openmp.thread)>(get_thread_num);
  openmp.threads = reinterpret_cast<decltype(openmp.threads)>(get_num_threads);
}

int dlmk_score_tokens(const DlmkScoreArgs* args) {
  return dlmk::status_of([&] { dlmk::Scorer(*args).run(); });
}
