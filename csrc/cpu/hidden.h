// Rows whose logits come piece by piece: what is known of each, and how two parts of a vocabulary become one.
#pragma once

#include <vector>

#include "cpu/arguments.h"
#include "cpu/parallel.h"
#include "cpu/row.h"

namespace dlmk {

// Statistics of the part of a row that has been read; the same five numbers for a piece, a shard and the whole vocabulary.
struct Part {
  double m;       // maximum; NaN if there is one
  double index;   // vocabulary index of m, the lowest; of the first NaN; -1: nothing is above -inf
  double second;  // the highest of the other entries
  double s, t;    // sums of e^y and e^y y over y = (x - m) / scale; if m = +inf, s counts the entries that are
};

// The highest entries of a filtered row, which settle most filters. All entries above the lowest held one are among them; if
// there is room left, all that are above -inf.
struct Held {
  float value;
  int32_t index;
};

// The descent to the boundary of a filter, eight bits of the ordered values a pass.
struct Search {
  int64_t above;           // weight of the values above those that begin with `prefix`
  double limit;            // the boundary is the lowest value with less than this weight above it
  float floor, by_k;       // values below `floor` weigh nothing; the boundary of top-k once it is known
  uint32_t prefix, level;  // `level` groups of eight bits are fixed
};

constexpr int kBins = 256;

enum Todo : int32_t { kSettled = 0, kSearchK = 1, kSearchP = 2, kReadAgain = 3 };

struct Winner {
  double value, index, logit;  // of the highest noised entry; index kNobody: none
  double s, t;                 // as in Part, over what the filters leave
};
constexpr double kNobody = 9007199254740992.0;

// `b` into `a`. Symmetric in the indices, so that shards may come in any order.
void absorb(Part& a, const Part& b, double scale);

// Of one entry of a row.
float noise(const DrawKey& key, int64_t index);

// Entries that may begin anywhere, for kernels that draw: they take whole blocks of four.
struct Aligned {
  const float* x;
  int64_t n, first;
};
Aligned aligned(const float* x, int64_t n, int64_t first, float* buffer);

// Memory that is reused from row to row, a buffer for each of the threads that share a row.
struct PieceScratch {
  static constexpr int64_t kBuffer = 2 * kChunk + 4;  // a chunk as floats, and once more for `aligned`
  std::vector<float> buffers;
  std::vector<ChunkStats> chunks;
  std::vector<int64_t> order;
  std::vector<Held> held;
  std::vector<Contenders> contenders;
  const char* next = nullptr;  // the row that this thread takes after the current one

  explicit PieceScratch(int sharing) : buffers(size_t(sharing * kBuffer)), contenders(size_t(sharing)) {}
  float* view(int thread = 0) { return buffers.data() + thread * kBuffer; }
  float* copy(int thread = 0) { return view(thread) + kChunk; }
};

// Rows of a piece, over threads or with `sharing` threads for each: body(r, its logits, scratch).
template <class Body>
void over_rows(const DlmkHiddenArgs& a, const DlmkPiece& piece, int sharing, Body body) {
  // In the piece's own indices.
  std::vector<int64_t> suppressed;
  const int64_t* ids = address<int64_t>(a.suppress_ids);
  for (const int64_t *id = ids, *end = ids + a.suppress_count; id != end; ++id)
    if (*id >= piece.first && *id < piece.first + piece.n) suppressed.push_back(*id - piece.first);
  const int64_t work = a.R * piece.n / 16384 + 1;
  parallel(sharing > 1 ? 1 : int(std::min<int64_t>({a.threads, a.R, work})), [&](int thread, int team) {
    PieceScratch scratch(sharing);
    const int64_t end = a.R * (thread + 1) / team;
    for (int64_t r = a.R * thread / team; r < end; ++r) {
      Row row{nullptr, piece.dtype, piece.n, &suppressed};
      row.logits = address<char>(piece.logits) + r * piece.stride * row.width();
      scratch.next = r + 1 < end ? row.logits + piece.stride * row.width() : nullptr;
      body(r, row, scratch);
    }
  });
}

class HiddenRows {
 public:
  explicit HiddenRows(const DlmkHiddenArgs& args);

  DlmkHiddenNeeds needs() const;
  void begin() const;
  void read(const DlmkPiece& piece) const;
  void merge(const Part* parts, const Held* held, const int32_t* held_count) const;
  int64_t filter() const;
  void weigh(const DlmkPiece& piece) const;
  int64_t descend() const;
  int64_t settle() const;
  void draw(const DlmkPiece& piece) const;
  void merge_winners(const Winner* others) const;
  void finish() const;

 private:
  struct Plan {
    float temperature;                 // 1 where nothing is sampled
    bool sampled, filtered, reshaped;  // filtered: and it matters
    float scale;                       // of a Part
    DrawKey key;
  };
  Plan plan(int64_t r) const;
  float maximum(int64_t r) const { return float(part_[r].m); }
  bool finite(int64_t r) const { return part_[r].index >= 0 && std::isfinite(part_[r].m); }
  // Whether every entry >= lowest is held.
  bool all_held(int64_t r, float lowest) const;
  int64_t mass(int64_t r, const Plan& plan, float x) const;

  // hidden_read.cpp
  void survey(int64_t r, const Plan& plan, const Row& row, int64_t begin, int64_t end, int thread, PieceScratch& scratch) const;
  void take(int64_t r, const Plan& plan, const Row& row, int64_t first, PieceScratch& scratch) const;
  void contend(int64_t r, const Plan& plan, const Row& row, int64_t first, int sharing, PieceScratch& scratch) const;
  void hold(int64_t r, const Row& row, int64_t first, PieceScratch& scratch) const;
  void cut(std::vector<Held>& all) const;
  void put_held(int64_t r, std::vector<Held>& all) const;

  // hidden_filters.cpp
  void boundary_of_k(int64_t r, const Plan& plan, float lowest) const;
  bool nucleus_of_held(int64_t r, const Plan& plan) const;
  void keep(int64_t r, float by_p) const;
  void add_weights(int64_t r, const Row& row, float* buffer) const;

  const DlmkHiddenArgs& a_;
  Part* part_;
  Held* held_;
  int32_t *held_count_, *todo_;
  Contenders* contenders_;
  float* keep_;
  Search* search_;
  int64_t* bins_;
  Winner* winner_;
};

}  // namespace dlmk
