// The row kernels for any processor.
#include "cpu/row_kernels.h"
#include "cpu/vec_scalar.h"

namespace dlmk {
const InstructionSet SCALAR_SET = instruction_set<VecScalar>("scalar");
}
