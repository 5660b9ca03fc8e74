// Products of bfloat operands: compiled apart, as each operand takes its time.
#include "products.h"

namespace fastcka {
namespace cuda {

void products_bf16(const ProductsArgs& args, void* stream) {
  launch_operand<bfloat_bits>(args, stream);
}

}  // namespace cuda
}  // namespace fastcka
