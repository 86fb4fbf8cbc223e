// Code written over a block of threads (common/select.h), run by one.
#pragma once

#include <algorithm>

#include "common/select.h"

namespace dlmk {

class SingleThread {
 public:
  int64_t rank() const { return 0; }
  int64_t size() const { return 1; }
  void sync() {}
  int64_t total(int64_t n) const { return n; }
  int64_t highest(int64_t n) const { return n; }
  void clear_slots() { slots_ = 0; }
  int64_t slot() { return slots_++; }
  int64_t slots() const { return slots_; }
  void sort(uint64_t* keys, int64_t n) { std::sort(keys, keys + n); }

 private:
  int64_t slots_ = 0;
};

}  // namespace dlmk
