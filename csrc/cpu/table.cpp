// The kernels of one instruction set, gathered where dispatch.cpp finds them.
#include "../kernels.h"

#define FASTCKA_NAME(x) #x
#define FASTCKA_TEXT(x) FASTCKA_NAME(x)

namespace fastcka {
namespace FASTCKA_ISA {

size_t gram_workspace(int64_t n, int64_t p, Dtype dtype, int threads);
void gram(const GramArgs& args);
void finish(const FinishArgs& args);
size_t gram_finish_workspace(const GramInput* layers, int64_t count, int threads);
void gram_finish(const GramFinishArgs& args);
void hsic_pairs(const HsicArgs& args);
double multiply_adds(int64_t rounds, int threads, float* out);

extern const CpuKernels kernels;
const CpuKernels kernels = {
    FASTCKA_TEXT(FASTCKA_ISA), gram_workspace, gram,          finish,
    gram_finish_workspace,     gram_finish,    hsic_pairs,    multiply_adds,
};

}  // namespace FASTCKA_ISA
}  // namespace fastcka
