// Reads the argument structs of dlmk.h and says how a call went.
#pragma once

#include <new>

#include "common/philox.h"
#include "cpu/dlmk.h"

namespace dlmk {

template <class T>
const T* address(int64_t value) {
  return reinterpret_cast<const T*>(value);
}

// Element [b, l]; of an argument that the op writes, if T is not const.
template <class T>
T& element(const DlmkRows& rows, int64_t b, int64_t l) {
  return reinterpret_cast<T*>(rows.data)[b * rows.stride_b + l * rows.stride_l];
}

template <class T>
T at(const DlmkRows& rows, int64_t b, int64_t l) {
  return element<const T>(rows, b, l);
}

inline DrawKey draw_key(const DlmkRows& seed, const DlmkRows& row_ids, const DlmkRows& step, int64_t b, int64_t l) {
  return {at<int64_t>(seed, b, l), at<int64_t>(row_ids, b, l), at<int64_t>(step, b, l)};
}

template <class Body>
int status_of(Body body) {
  try {
    body();
  } catch (const std::bad_alloc&) {
    return DLMK_OUT_OF_MEMORY;
  }
  return DLMK_OK;
}

}  // namespace dlmk
