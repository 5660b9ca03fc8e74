// Products of float32 operands: compiled apart, as each operand takes its time.
#include "products.h"

namespace fastcka {
namespace cuda {

void products_f32(const ProductsArgs& args, void* stream) { launch_operand<float>(args, stream); }

}  // namespace cuda
}  // namespace fastcka
