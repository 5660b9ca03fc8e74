// gram: x [n, p] -> the lower triangle of (x - c)(x - c)^T in float64, c the mean row of x.
//
// float16, bfloat16 and float32 values are multiplied in float32 and added up in float32 over
// kDepth features, then in float64; float64 values in float64 throughout. Threads split the
// features, each with a triangle of its own; the triangles are added in the order of the parts, so
// the result depends on the thread count alone. n^2 p flop on the executed triangle (rounded up to
// panels of 16 rows), n p values read once.
//
// Subtracting c changes no centred Gram matrix, and it must come before the products: afterwards
// the digits that a large common row has cost are gone (fastcka/maths/README.md).
#include "../kernels.h"
#include "gram_sums.h"
#include "isa.h"
#include "panel.h"
#include "pairs.h"
#include "tile.h"

namespace fastcka {
namespace FASTCKA_ISA {
namespace {

// Squares of values beyond these powers of two may leave the range of the accumulator, or lose the
// digits of values that centring has made small; then all values are scaled by a power of two,
// 2^limit at most.
template <class T>
struct Range;
template <>
struct Range<float> {
  static constexpr int lowest = -40, highest = 56, limit = 126;
};
template <>
struct Range<double> {
  static constexpr int lowest = -300, highest = 400, limit = 1022;
};

template <class T>
T power_of_two(int exponent) {
  T value = 1;
  const T factor = exponent < 0 ? T(0.5) : T(2);
  for (int i = exponent < 0 ? -exponent : exponent; i > 0; --i) value *= factor;
  return value;
}

// One thread's share of the workspace.
template <class T>
struct Part {
  double* sums;         // [padded, padded], lower triangle of panels
  T* rows;              // [padded, kRowStride]
  T* panels;            // [padded / 16, kBlock, 16]
  T* mean;              // [kBlock]
  double* mean_square;  // [1]: sum over the features of c^2
  T* largest;           // [1]: largest magnitude as read
};

size_t aligned(size_t bytes) { return (bytes + 63) / 64 * 64; }

template <class T>
size_t part_bytes(int64_t n) {
  const size_t rows = size_t(padded(n));
  return aligned(rows * rows * sizeof(double)) + aligned(rows * kRowStride * sizeof(T)) +
         aligned(rows * kBlock * sizeof(T)) + aligned(kBlock * sizeof(T)) +
         2 * aligned(sizeof(double));
}

template <class T>
Part<T> part_at(void* workspace, int64_t n, int index) {
  char* at = static_cast<char*>(workspace) + size_t(index) * part_bytes<T>(n);
  const size_t rows = size_t(padded(n));
  Part<T> part;
  part.sums = reinterpret_cast<double*>(at);
  at += aligned(rows * rows * sizeof(double));
  part.rows = reinterpret_cast<T*>(at);
  at += aligned(rows * kRowStride * sizeof(T));
  part.panels = reinterpret_cast<T*>(at);
  at += aligned(rows * kBlock * sizeof(T));
  part.mean = reinterpret_cast<T*>(at);
  at += aligned(kBlock * sizeof(T));
  part.mean_square = reinterpret_cast<double*>(at);
  at += aligned(sizeof(double));
  part.largest = reinterpret_cast<T*>(at);
  return part;
}

// A part that had less than this to add up would cost more than it saves.
constexpr int64_t kLeast = 256;

template <class T>
int part_count(int64_t n, int64_t p, int threads) {
  int64_t parts = (p + kLeast - 1) / kLeast;
  if (threads < parts) parts = threads;
  const int64_t affordable = int64_t(kLargestWorkspace / part_bytes<T>(n));
  if (affordable < parts) parts = affordable;
  return parts < 1 ? 1 : int(parts);
}

template <class In, class T>
void largest_of_part(const GramInput& args, const Part<T>& part, int64_t begin, int64_t end) {
  typename Simd<T>::vec largest = {};
  for (int64_t first = begin; first < end; first += kBlock) {
    const int64_t depth = end - first < kBlock ? end - first : kBlock;
    largest = read_block<In, T>(args, first, depth, T(1), part.rows, part.mean, largest);
  }
  *part.largest = largest_lane<T>(largest);
}

// Packs the rows of a block and adds their products to the triangle.
template <class T>
void multiply_block(const Part<T>& part, int64_t panel_count, int64_t depth, Operand operand,
                    int64_t stride) {
#if defined(__AVX512BF16__)
  if constexpr (sizeof(T) == sizeof(float))
    if (operand == Operand::bf16) {
      constexpr int64_t panel_stride = kBlock / 2 * kPanel;
      // Pairs take half of the room: the other half holds them as they are before transposition.
      uint32_t* pairs = reinterpret_cast<uint32_t*>(part.panels);
      uint32_t* flat = pairs + panel_count * panel_stride;
      for (int64_t panel = 0; panel < panel_count; ++panel)
        pack_pairs(part.rows + panel * kPanel * kRowStride, part.mean, depth,
                   pairs + panel * panel_stride, flat + panel * panel_stride);
      return add_pairs(flat, pairs, panel_count, (depth + 1) / 2, part.sums, stride);
    }
#endif
  for (int64_t panel = 0; panel < panel_count; ++panel)
    pack_panel(part.rows + panel * kPanel * kRowStride, part.mean, depth, operand,
               part.panels + panel * kBlock * kPanel);
  add_triangle(part.panels, panel_count, depth, part.sums, stride);
}

template <class In, class T>
void sum_part(const GramInput& args, const Part<T>& part, int64_t begin, int64_t end, T scale) {
  const int64_t stride = padded(args.n), panel_count = stride / kPanel;
  for (int64_t i = 0; i < stride; ++i)
    for (int64_t j = 0; j < (i / kPanel + 1) * kPanel; ++j) part.sums[i * stride + j] = 0;
  double mean_square = 0;
  typename Simd<T>::vec largest = {};
  for (int64_t first = begin; first < end; first += kBlock) {
    const int64_t depth = end - first < kBlock ? end - first : kBlock;
    largest = read_block<In, T>(args, first, depth, scale, part.rows, part.mean, largest);
    mean_square += square_of<T>(part.mean, depth);
    multiply_block(part, panel_count, depth, args.operand, stride);
  }
  *part.mean_square = mean_square;
  *part.largest = largest_lane<T>(largest);
}
// The exponent of `largest`, 0 where it is zero, infinite or not a number.
template <class T>
int exponent_of(T largest) {
  if (!(largest > 0) || !(largest - largest == 0)) return 0;
  int exponent = 0;
  for (; largest >= T(2); largest *= T(0.5)) ++exponent;
  // Zero: a processor that flushes subnormals would double one for ever.
  for (; largest < T(1) && largest > 0; largest *= T(2)) --exponent;
  return exponent;
}

template <class T>
int largest_exponent(const GramInput& args, int parts) {
  T largest = 0;
  for (int t = 0; t < parts; ++t) {
    const T part = *part_at<T>(args.workspace, args.n, t).largest;
    largest = part > largest ? part : largest;
  }
  return exponent_of(largest);
}

template <class T>
int clamped(int exponent) {
  const int limit = Range<T>::limit;
  return exponent < -limit ? -limit : exponent > limit ? limit : exponent;
}

template <class In, class T>
GramSums sums_as(const GramInput& args) {
  const int parts = part_count<T>(args.n, args.p, args.threads);
  const int64_t n = args.n;
  const bool rounds_to_half = args.operand == Operand::f16 && sizeof(T) == 4;
  int exponent = 0;
  if (rounds_to_half) {
    // Halves span 40 powers of two: the values must be placed among them before they are rounded,
    // below the largest, 2^16, with room for the subtraction.
#pragma omp parallel for schedule(static, 1) num_threads(args.threads) if (parts > 1)
    for (int t = 0; t < parts; ++t)
      largest_of_part<In, T>(args, part_at<T>(args.workspace, n, t), args.p * t / parts,
                             args.p * (t + 1) / parts);
    exponent = clamped<T>(largest_exponent<T>(args, parts) - 14);
  }
  for (;;) {
    const T scale = power_of_two<T>(-exponent);
#pragma omp parallel for schedule(static, 1) num_threads(args.threads) if (parts > 1)
    for (int t = 0; t < parts; ++t)
      sum_part<In, T>(args, part_at<T>(args.workspace, n, t), args.p * t / parts,
                      args.p * (t + 1) / parts, scale);
    if (exponent != 0 || rounds_to_half) break;
    const int found = clamped<T>(largest_exponent<T>(args, parts));
    if (found >= Range<T>::lowest && found <= Range<T>::highest) break;
    exponent = found;  // rare: once more, with the values scaled
  }
  GramSums sums;
  sums.first = static_cast<const char*>(args.workspace);
  sums.part_bytes = part_bytes<T>(n);
  sums.parts = parts;
  sums.stride = padded(n);
  sums.unscale = power_of_two<double>(exponent);
  sums.mean_square = 0;
  for (int t = 0; t < parts; ++t) sums.mean_square += *part_at<T>(args.workspace, n, t).mean_square;
  sums.mean_square = sums.mean_square * sums.unscale * sums.unscale;
  return sums;
}
}  // namespace

size_t gram_workspace(int64_t n, int64_t p, Dtype dtype, int threads) {
  return dtype == Dtype::f64 ? part_bytes<double>(n) * size_t(part_count<double>(n, p, threads))
                             : part_bytes<float>(n) * size_t(part_count<float>(n, p, threads));
}

GramSums gram_sums(const GramInput& input) {
  switch (input.dtype) {
    case Dtype::f16: return sums_as<half_bits, float>(input);
    case Dtype::bf16: return sums_as<bfloat_bits, float>(input);
    case Dtype::f32: return sums_as<float, float>(input);
    case Dtype::f64: break;
  }
  return sums_as<double, double>(input);
}

void gram(const GramArgs& args) {
  const GramSums sums = gram_sums(args);
#pragma omp parallel for num_threads(args.threads) if (sums.worth_sharing(args.n))
  for (int64_t i = 0; i < args.n; ++i) sums.row(i, i + 1, args.k + i * args.k_stride);
  double spread = 0;
  for (int64_t i = 0; i < args.n; ++i) spread += args.k[i * args.k_stride + i];
  args.stats[0] = sums.mean_square;
  args.stats[1] = spread + double(args.n) * sums.mean_square;
  args.stats[2] = spread;
}

}  // namespace FASTCKA_ISA
}  // namespace fastcka
