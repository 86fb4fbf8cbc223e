#include "cpu/normals_impl.h"

namespace dlmk {

void normals_scalar(const DrawKey& key, int64_t first, int64_t n, float* out) { normals_of(key, first, n, out); }

}  // namespace dlmk
