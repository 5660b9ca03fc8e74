// Every host entry point of the native kernels, declared once.
//
// Kernels see addresses, sizes, strides and a thread count or a stream. They own no memory and no
// threads: outputs and workspaces belong to the caller. A parallel region always has as many threads
// as the caller named, idle ones among them: the OpenMP runtime that torch shares with us ends those
// that a smaller team leaves out, and torch would start them again. Shapes and types are checked in
// bindings.cpp, the only file that knows Python.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fastcka {

enum class Dtype { f16, bf16, f32, f64 };

// The type of the values that are multiplied in the Gram product.
enum class Operand { as_accumulated, f16, bf16 };

enum class Estimator { unbiased, biased };

// The activations of a layer, and what it takes to multiply them. Features may come in any order, so
// a row only has to be dense.
struct GramInput {
  const void* x;       // [n, p], `dtype`, unit stride within a row
  int64_t n, p;
  int64_t row_stride;  // in elements
  Dtype dtype;
  Operand operand;     // as_accumulated: float32, or float64 where x is float64
  void* workspace;     // gram_workspace(n, p, dtype, threads) bytes, 64-byte aligned
  int threads;
};

// The lower triangle of (x - c)(x - c)^T, with c the mean row of x.
struct GramArgs : GramInput {
  double* k;      // [n, n], only j <= i is written
  int64_t k_stride;
  double* stats;  // [3]: |c|^2, sum |x_i|^2, sum |x_i - c|^2
};

// A centred Gram matrix, packed so that one inner product of two packed rows is the sum over all
// entries of the two centred matrices.
struct Finished {
  double* packed;    // [n(n-1)/2] unbiased, [n(n+1)/2] biased
  double* diagonal;  // [n], of k
  double* row_sums;  // [n], of k without its diagonal
  double* summary;   // [5]: |centred|^2, |k without diagonal|^2, sum |x_i - c|^2, sum |x_i|^2,
                     //      |raw k| / rms(centred)
};

// Centres a Gram matrix and packs its triangle.
struct FinishArgs : Finished {
  const double* k;      // [n, n], only j <= i is read
  int64_t n, k_stride;
  const double* stats;  // [3], of gram
  Estimator estimator;
};

// gram and finish of many layers of the same examples, without the matrix between them.
struct GramFinishArgs {
  const GramInput* layers;  // workspace and threads are set on the way
  const Finished* out;
  int64_t count;
  Estimator estimator;
  void* workspace;  // gram_finish_workspace(layers, count, threads) bytes, 64-byte aligned
  int threads;
};

// out[i, j] = <a_i, b_j>. A pair's value does not depend on the other rows or on the thread count.
struct HsicArgs {
  const double* a;  // [rows_a, length]
  const double* b;  // [rows_b, length]
  int64_t rows_a, rows_b, length, a_stride, b_stride;
  bool symmetric;   // a and b are the same rows: half the work
  double* out;      // [rows_a, rows_b]
  int64_t out_stride;
  int threads;
};

// The kernels of one instruction set.
struct CpuKernels {
  const char* isa;
  size_t (*gram_workspace)(int64_t n, int64_t p, Dtype dtype, int threads);
  void (*gram)(const GramArgs&);
  void (*finish)(const FinishArgs&);
  size_t (*gram_finish_workspace)(const GramInput* layers, int64_t count, int threads);
  void (*gram_finish)(const GramFinishArgs&);
  void (*hsic_pairs)(const HsicArgs&);
  // Runs and returns that many float32 operations; `out` [threads] holds any small values.
  double (*multiply_adds)(int64_t rounds, int threads, float* out);
};

// The fastest kernels that this processor can run, or those that FASTCKA_ISA names.
// Throws std::runtime_error where the name is unknown or the processor lacks the instructions.
const CpuKernels& cpu_kernels();

// The instruction sets that were built, fastest first.
struct IsaState {
  const CpuKernels* kernels;
  bool supported;  // by this processor
  bool automatic;  // taken where FASTCKA_ISA names none
};
const IsaState* cpu_isas(int* count);

#ifdef FASTCKA_WITH_CUDA
// Many layers of the same examples at once, on `stream` of `device`: every address is the device's.
// Nothing here allocates or waits. Throws std::runtime_error with CUDA's own message.
// fastcka/kernels/gpu_gram.py says what the tables hold.
namespace cuda {

struct Layer {
  int64_t distance, stride, features;  // from `base`, of rows, of a row: in pieces
  int64_t pivot;                       // where its pivot is: in 16 values
};

struct Segment : Layer {
  int64_t layer, row_a, row_b;  // where the two blocks of rows begin
  int64_t start, stop;          // in steps of `step` features
};

struct Work {
  int64_t layer, row_a, row_b;
  int64_t first, last;  // its slots, `last` excluded
};

// The mean of some rows of each layer, which `products` subtracts.
struct SampleArgs {
  const void* base;
  Dtype dtype;
  int64_t piece;        // values: 16 bytes, or 1
  const Layer* layers;  // [count]
  int64_t count, n, rows;
  int64_t block;        // features that a block of threads takes
  int64_t padding;      // pivots are zero from the last feature to the next multiple of it
  int64_t blocks;       // of the widest layer
  float* pivots;
  int32_t* largest;     // [count]: the bits of the largest magnitude in the sampled rows; before,
                        // what it is at least
  double* norms;        // [count, blocks]: of each block, the mean square of the sampled rows
};

// square: a block of rows with itself. pair: two with each other. triangle: two with themselves, and
// the second with the first, by GPUs of compute capability 9.0.
enum class TileKind { square, pair, triangle };

// What tensor cores multiply: each segment's sums of products, in a slot of its own.
struct ProductsArgs {
  const void* base;
  Dtype dtype;
  Operand operand;
  int64_t piece;            // values: 16 bytes, then they are copied as such, or 1
  TileKind kind;
  int64_t rows, columns;    // of a product
  int64_t step;
  const Segment* segments;
  const int64_t* begins;    // [programs + 1]
  int64_t programs, n;
  const float* pivots;
  const int32_t* largest;
  float* partials;          // [segments, products, rows, columns], of a triangle three products
};

// The slots of each tile, in order, to the lower triangle of its layer's matrix.
struct AddUpArgs {
  const Work* works;  // [count]
  TileKind kind;
  int64_t count, n, rows, columns;
  const float* partials;
  const int32_t* largest;
  double* k;          // [layers, n, n]
};

// From rows less the pivot to rows less their mean.
struct RecentreArgs {
  double* k;      // [layers, n, n], the lower triangle
  double* means;  // [layers, n], a workspace
  int64_t layers, n;
};

struct FinishAllArgs {
  const double* k;      // [layers, n, n], only j <= i is read
  const double* stats;  // [layers, blocks]: of gram; of `sample` the norms, where `pivoted`
  int64_t blocks;
  bool pivoted;         // k is of rows less a common row other than their mean
  Finished out;         // of the first layer
  int64_t packed_stride, diagonal_stride, row_sums_stride, summary_stride;
  double* sums;         // [layers, n, 2], a workspace
  double* squares;      // [layers, n, 2], a workspace
  int64_t layers, n;
  Estimator estimator;
};

struct HsicRunsArgs : HsicArgs {  // `threads` is not read
  int64_t runs, run;  // so many entries of the rows are added up by one block of threads
  double* partials;   // [runs, rows_a, rows_b], a workspace
};

void sample(const SampleArgs& args, int device, void* stream);
void products(const ProductsArgs& args, int device, void* stream);
void add_up(const AddUpArgs& args, int device, void* stream);
void recentre(const RecentreArgs& args, int device, void* stream);
void finish(const FinishAllArgs& args, int device, void* stream);
void hsic_pairs(const HsicRunsArgs& args, int device, void* stream);

}  // namespace cuda
#endif

}  // namespace fastcka
