// hsic_pairs: a [L, m], b [M, m] packed centred Gram matrices -> out [L, M] of inner products.
//
// float64; L M m multiply-adds (half where a is b). Threads split the rows of a; every pair is
// summed by one thread in one order, so its value depends neither on the other layers nor on the
// thread count.
#include "../kernels.h"
#include "dot.h"
#include "isa.h"

namespace fastcka {
namespace FASTCKA_ISA {
namespace {

// One vector of a and of b feed each product: 4 x 4 needs 8 loads for 16 multiply-adds.
constexpr int64_t kRows = kAccumulators >= 16 ? 4 : 2;
constexpr int64_t kColumns = 4;

void one_row(const double* a, const HsicArgs& args, int64_t columns, int64_t first, int64_t count,
             double* out) {
  int64_t j = 0;
  for (; j + kColumns <= columns; j += kColumns)
    dot_tile<1, kColumns>(a + first, 0, args.b + j * args.b_stride + first, args.b_stride, count,
                          out + j, 0);
  for (; j < columns; ++j)
    dot_tile<1, 1>(a + first, 0, args.b + j * args.b_stride + first, 0, count, out + j, 0);
}

void rows_of_part(const HsicArgs& args, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i)
    for (int64_t j = 0; j < (args.symmetric ? i + 1 : args.rows_b); ++j)
      args.out[i * args.out_stride + j] = 0;
  for (int64_t first = 0; first < args.length; first += kDotBlock) {
    const int64_t count = args.length - first < kDotBlock ? args.length - first : kDotBlock;
    int64_t i = begin;
    for (; i + kRows <= end; i += kRows) {
      const double* a = args.a + i * args.a_stride + first;
      double* out = args.out + i * args.out_stride;
      // Where the triangle cuts through the tile, the whole rows come first, the corner after.
      const int64_t shared = args.symmetric ? (i + 1) / kColumns * kColumns : args.rows_b;
      int64_t j = 0;
      for (; j + kColumns <= shared; j += kColumns)
        dot_tile<kRows, kColumns>(a, args.a_stride, args.b + j * args.b_stride + first,
                                  args.b_stride, count, out + j, args.out_stride);
      for (int64_t r = 0; r < kRows; ++r)
        for (int64_t c = j; c < (args.symmetric ? i + r + 1 : args.rows_b); ++c)
          dot_tile<1, 1>(a + r * args.a_stride, 0, args.b + c * args.b_stride + first, 0, count,
                         out + r * args.out_stride + c, 0);
    }
    for (; i < end; ++i)
      one_row(args.a + i * args.a_stride, args, args.symmetric ? i + 1 : args.rows_b, first, count,
              args.out + i * args.out_stride);
  }
}
}  // namespace

void hsic_pairs(const HsicArgs& args) {
  // Shares of four rows, dealt in turn: the rows of a triangle differ in length.
  const int64_t shares = (args.rows_a + kRows - 1) / kRows;
#pragma omp parallel for schedule(static, 1) num_threads(args.threads) \
    if (args.threads > 1 && shares > 1)
  for (int64_t share = 0; share < shares; ++share) {
    const int64_t begin = share * kRows;
    rows_of_part(args, begin, begin + kRows < args.rows_a ? begin + kRows : args.rows_a);
  }
  if (args.symmetric)
    for (int64_t i = 0; i < args.rows_a; ++i)
      for (int64_t j = 0; j < i; ++j)
        args.out[j * args.out_stride + i] = args.out[i * args.out_stride + j];
}

}  // namespace FASTCKA_ISA
}  // namespace fastcka
