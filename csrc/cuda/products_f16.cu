// Products of half operands: compiled apart, as each operand takes its time.
#include "products.h"

namespace fastcka {
namespace cuda {

void products_f16(const ProductsArgs& args, void* stream) {
  launch_operand<half_bits>(args, stream);
}

}  // namespace cuda
}  // namespace fastcka
