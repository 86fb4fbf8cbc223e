// How the kernels take tensors of one value per row of logits.
#pragma once

#include "common/portable_math.h"

// A [B, L] argument: address and strides in elements. Address 0: absent.
struct DlmkRows {
  int64_t data, stride_b, stride_l;
};

namespace dlmk {

template <class T>
DLMK_FN T& row_value(const DlmkRows& rows, int64_t b, int64_t l) {
  return reinterpret_cast<T*>(rows.data)[b * rows.stride_b + l * rows.stride_l];
}

}  // namespace dlmk
