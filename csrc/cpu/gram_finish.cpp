// gram_finish: many layers x [n, p] -> their centred, packed Gram matrices, without the matrices.
//
// The threads share a wide layer, as in gram; narrow layers, where there is one for each thread, are
// dealt out, so that neither waking threads nor adding up their triangles costs more than products.
#include "../kernels.h"
#include "centre.h"
#include "gram_sums.h"
#include "isa.h"

namespace fastcka {
namespace FASTCKA_ISA {
namespace {

// Features from which on a layer is shared.
constexpr int64_t kWide = 4096;

bool narrow(const GramInput& layer) { return layer.p < kWide; }

// Bytes that one layer needs when `threads` share it.
size_t bytes_of(const GramInput& layer, int threads) {
  return (gram_workspace(layer.n, layer.p, layer.dtype, threads) + 63) / 64 * 64;
}

// Bytes that one thread needs for any of the narrow layers.
size_t narrow_bytes(const GramInput* layers, int64_t count) {
  size_t most = 0;
  for (int64_t i = 0; i < count; ++i)
    if (narrow(layers[i])) {
      const size_t bytes = bytes_of(layers[i], 1);
      most = bytes > most ? bytes : most;
    }
  return most;
}

// Threads among which the narrow layers are dealt; fewer than 2: they are shared like wide ones.
int dealers(const GramInput* layers, int64_t count, int threads) {
  int64_t narrow_ones = 0;
  for (int64_t i = 0; i < count; ++i) narrow_ones += narrow(layers[i]);
  if (narrow_ones < threads) return 0;  // some would idle
  const size_t affordable = kLargestWorkspace / narrow_bytes(layers, count);
  return affordable < size_t(threads) ? int(affordable) : threads;
}

void finish_layer(GramInput layer, const Finished& out, Estimator estimator, void* workspace,
                  int threads) {
  layer.workspace = workspace;
  layer.threads = threads;
  const GramSums sums = gram_sums(layer);
#pragma omp parallel for num_threads(threads) if (sums.worth_sharing(layer.n))
  for (int64_t i = 0; i < layer.n; ++i) {
    sums.row(i, i, out.packed + packed_start(i, estimator));
    out.diagonal[i] = sums.diagonal(i);
  }
  centre(layer.n, sums.mean_square, estimator, out);
  double spread = 0;
  for (int64_t i = 0; i < layer.n; ++i) spread += out.diagonal[i];
  out.summary[2] = spread;
  out.summary[3] = spread + double(layer.n) * sums.mean_square;
}
}  // namespace

size_t gram_finish_workspace(const GramInput* layers, int64_t count, int threads) {
  const int dealt = dealers(layers, count, threads);
  size_t most = dealt > 1 ? narrow_bytes(layers, count) * size_t(dealt) : 0;
  for (int64_t i = 0; i < count; ++i)
    if (dealt < 2 || !narrow(layers[i])) {
      const size_t bytes = bytes_of(layers[i], threads);
      most = bytes > most ? bytes : most;
    }
  return most;
}

void gram_finish(const GramFinishArgs& args) {
  const int dealt = dealers(args.layers, args.count, args.threads);
  for (int64_t i = 0; i < args.count; ++i)
    if (dealt < 2 || !narrow(args.layers[i]))
      finish_layer(args.layers[i], args.out[i], args.estimator, args.workspace, args.threads);
  if (dealt < 2) return;
  const size_t share = narrow_bytes(args.layers, args.count);
#pragma omp parallel for schedule(static, 1) num_threads(args.threads)
  for (int t = 0; t < dealt; ++t) {
    char* workspace = static_cast<char*>(args.workspace) + size_t(t) * share;
    int64_t turn = 0;
    for (int64_t i = 0; i < args.count; ++i)
      if (narrow(args.layers[i]) && turn++ % dealt == t)
        finish_layer(args.layers[i], args.out[i], args.estimator, workspace, 1);
  }
}

}  // namespace FASTCKA_ISA
}  // namespace fastcka
