// Rows whose logits come piece by piece: what is known of each, and how two parts of a vocabulary become one.
#pragma once

#include <vector>

#include "cpu/dlmk.h"
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

// Entries of an unfiltered row that may have the highest noised value. (x - m) / temperature is rounded, so that the winner is
// known only when m is: until then everything within kSlack of the best stays.
struct Contender {
  float x, noise;
  int32_t index;
};
constexpr int kContenders = 8;
struct Contenders {
  int32_t count;  // -1: more than there is room for, which takes eight noised values within kSlack; the row is read again
  Contender list[kContenders];
};

// The descent to the boundary of a filter, eight bits of the ordered values a pass.
struct Search {
  int64_t above;           // weight of the values above those that begin with `prefix`
  double limit;            // the boundary is the lowest value with less than this weight above it
  float floor, by_k;       // values below `floor` weigh nothing; the boundary of top-k once it is known
  uint32_t prefix, level;  // `level` groups of eight bits are fixed
};

enum Todo : int32_t { kSettled = 0, kSearchK = 1, kSearchP = 2, kReadAgain = 3 };

struct Winner {
  double value, index, logit;  // of the highest noised entry; index kNobody: none
  double s, t;                 // as in Part, over what the filters leave
};
constexpr double kNobody = 9007199254740992.0;

struct PieceScratch;  // memory that a thread reuses from row to row

class HiddenRows {
 public:
  explicit HiddenRows(const DlmkHiddenArgs& args);

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

  bool contend(int64_t r, const Plan& plan, const float* x, int64_t n, int64_t first, float max, float* buffer) const;
  void hold(int64_t r, const Row& row, int64_t first, PieceScratch& scratch) const;
  void cut(std::vector<Held>& all) const;
  void put_held(int64_t r, std::vector<Held>& all) const;
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
