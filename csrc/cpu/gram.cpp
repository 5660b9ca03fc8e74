// gram: x [n, p] -> the lower triangle of (x - c)(x - c)^T in float64, c the mean row of x.
//
// float16, bfloat16 and float32 values are multiplied in float32 and added up in float32 over
// kBlock features, then in float64; float64 values in float64 throughout. Threads split the
// features, each with a triangle of its own; the triangles are added in the order of the parts, so
// the result depends on the thread count alone. n^2 p flop on the executed triangle (rounded up to
// panels of 16 rows), n p values read once.
//
// Subtracting c changes no centred Gram matrix, and it must come before the products: afterwards
// the digits that a large common row has cost are gone (fastcka/maths/README.md).
#include "../kernels.h"
#include "convert.h"
#include "isa.h"
#include "transpose.h"

namespace fastcka {
namespace FASTCKA_ISA {

// Rows of x that are packed together: the unit in which the triangle is cut.
// A packed panel serves as the broadcast operand and as the vector operand.
namespace {
constexpr int kPanel = 16;
// Features per float32 sum: a block of 64 rows (64 KiB) stays in the second-level cache while it is
// read as rows, centred and packed.
constexpr int kBlock = 256;

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

// Adds a tile of 16/Rows by 16*Panels products over `depth` features to the float64 triangle.
// a: [depth, 16], from row `a_row` of its panel; b: `Panels` panels [depth, 16], `b_stride` apart.
template <class T, int Rows, int Panels>
void tile(const T* a, const T* b, int64_t b_stride, int64_t depth, double* sums, int64_t stride) {
  using vec = typename Simd<T>::vec;
  constexpr int width = Simd<T>::width;
  constexpr int per_panel = kPanel / width;
  constexpr int columns = Panels * per_panel;
  vec acc[Rows][columns] = {};
  for (int64_t k = 0; k < depth; ++k) {
    vec right[columns];
#pragma GCC unroll 8
    for (int j = 0; j < columns; ++j)
      right[j] = *reinterpret_cast<const vec*>(b + (j / per_panel) * b_stride + k * kPanel +
                                               (j % per_panel) * width);
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) {
      const T left = a[k * kPanel + i];
#pragma GCC unroll 8
      for (int j = 0; j < columns; ++j) acc[i][j] += left * right[j];
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < columns; ++j)
#pragma GCC unroll 16
      for (int lane = 0; lane < width; ++lane)
        sums[i * stride + j * width + lane] += double(acc[i][j][lane]);
}

template <class T, int Panels>
void tile_rows(const T* a, const T* b, int64_t b_stride, int64_t depth, double* sums,
               int64_t stride) {
  constexpr int vectors = Panels * kPanel / Simd<T>::width;
  constexpr int rows = kAccumulators / vectors < 1 ? 1 : kAccumulators / vectors;
  constexpr int height = rows > kPanel ? kPanel : rows;
  for (int i = 0; i < kPanel; i += height)
    tile<T, height, Panels>(a + i, b, b_stride, depth, sums + i * stride, stride);
}

// All tiles on and below the diagonal of panels.
template <class T>
void accumulate_triangle(const T* panels, int64_t panel_count, int64_t depth, double* sums,
                         int64_t stride) {
  constexpr int wide = kAccumulators >= 2 * kPanel / Simd<T>::width * 8 ? 2 : 1;
  const int64_t panel_stride = int64_t(kBlock) * kPanel;
  for (int64_t row = 0; row < panel_count; ++row) {
    const T* a = panels + row * panel_stride;
    double* out = sums + row * kPanel * stride;
    int64_t column = 0;
    for (; column + wide <= row + 1; column += wide)
      tile_rows<T, wide>(a, panels + column * panel_stride, panel_stride, depth,
                         out + column * kPanel, stride);
    for (; column <= row; ++column)
      tile_rows<T, 1>(a, panels + column * panel_stride, panel_stride, depth,
                      out + column * kPanel, stride);
  }
}

// rows [count <= 16, kBlock] -> panel [kBlock, 16], in 4x4 blocks; missing rows are zero.
template <class T>
void pack_panel(const T* rows, int64_t count, int64_t depth, T* panel) {
  for (int64_t i = 0; i < kPanel; i += 4) {
    int64_t k = 0;
    if (i + 4 <= count)
      for (; k + 4 <= depth; k += 4)
        transpose_4x4(rows + i * kBlock + k, kBlock, panel + k * kPanel + i, kPanel);
    for (; k < depth; ++k)
      for (int64_t r = i; r < i + 4; ++r)
        panel[k * kPanel + r] = r < count ? rows[r * kBlock + k] : T(0);
  }
}

inline void round_row(float* row, int64_t count, Operand operand) {
  if (operand == Operand::f16)
    for (int64_t k = 0; k < count; ++k) row[k] = round_to_half(row[k]);
  else if (operand == Operand::bf16)
    for (int64_t k = 0; k < count; ++k) row[k] = round_to_bfloat(row[k]);
}
// float64 values are multiplied as they are.
inline void round_row(double*, int64_t, Operand) {}

// One thread's share of the workspace.
template <class T>
struct Part {
  double* sums;         // [padded, padded], lower triangle of panels
  T* rows;              // [n, kBlock]
  T* panels;            // [padded / 16, kBlock, 16]
  T* mean;              // [kBlock]
  double* mean_square;  // [1]: sum over the features of c^2
  T* largest;           // [1]: largest magnitude as read
};

int64_t padded(int64_t n) { return (n + kPanel - 1) / kPanel * kPanel; }

size_t aligned(size_t bytes) { return (bytes + 63) / 64 * 64; }

template <class T>
size_t part_bytes(int64_t n) {
  const size_t square = size_t(padded(n)) * size_t(padded(n));
  return aligned(square * sizeof(double)) + aligned(size_t(n) * kBlock * sizeof(T)) +
         aligned(size_t(padded(n)) * kBlock * sizeof(T)) + aligned(kBlock * sizeof(T)) +
         2 * aligned(sizeof(double));
}

template <class T>
Part<T> part_at(void* workspace, int64_t n, int index) {
  char* at = static_cast<char*>(workspace) + size_t(index) * part_bytes<T>(n);
  const size_t square = size_t(padded(n)) * size_t(padded(n));
  Part<T> part;
  part.sums = reinterpret_cast<double*>(at);
  at += aligned(square * sizeof(double));
  part.rows = reinterpret_cast<T*>(at);
  at += aligned(size_t(n) * kBlock * sizeof(T));
  part.panels = reinterpret_cast<T*>(at);
  at += aligned(size_t(padded(n)) * kBlock * sizeof(T));
  part.mean = reinterpret_cast<T*>(at);
  at += aligned(kBlock * sizeof(T));
  part.mean_square = reinterpret_cast<double*>(at);
  at += aligned(sizeof(double));
  part.largest = reinterpret_cast<T*>(at);
  return part;
}

// All parts together take at most this, or one part does.
constexpr size_t kLargestWorkspace = size_t(512) << 20;

// A part that had less than a block to add up would cost more than it saves.
template <class T>
int part_count(int64_t n, int64_t p, int threads) {
  int64_t parts = (p + kBlock - 1) / kBlock;
  if (threads < parts) parts = threads;
  const int64_t affordable = int64_t(kLargestWorkspace / part_bytes<T>(n));
  if (affordable < parts) parts = affordable;
  return parts < 1 ? 1 : int(parts);
}

template <class T>
T largest_magnitude(const T* row, int64_t count, T largest) {
  for (int64_t k = 0; k < count; ++k) {
    const T magnitude = row[k] < 0 ? -row[k] : row[k];
    largest = magnitude > largest ? magnitude : largest;
  }
  return largest;
}

template <class In, class T>
void largest_of_part(const GramArgs& args, const Part<T>& part, int64_t begin, int64_t end) {
  T largest = 0;
  for (int64_t i = 0; i < args.n; ++i) {
    const In* x = static_cast<const In*>(args.x) + i * args.row_stride;
    for (int64_t k = begin; k < end; k += kBlock) {
      const int64_t depth = end - k < kBlock ? end - k : kBlock;
      load_row(x + k, part.rows, depth, T(1));
      largest = largest_magnitude(part.rows, depth, largest);
    }
  }
  *part.largest = largest;
}

template <class In, class T>
void sum_part(const GramArgs& args, const Part<T>& part, int64_t begin, int64_t end, T scale) {
  const int64_t n = args.n, stride = padded(n), panel_count = stride / kPanel;
  for (int64_t i = 0; i < stride; ++i)
    for (int64_t j = 0; j < (i / kPanel + 1) * kPanel; ++j) part.sums[i * stride + j] = 0;
  double mean_square = 0;
  T largest = 0;
  for (int64_t first = begin; first < end; first += kBlock) {
    const int64_t depth = end - first < kBlock ? end - first : kBlock;
    for (int64_t k = 0; k < depth; ++k) part.mean[k] = 0;
    for (int64_t i = 0; i < n; ++i) {
      const In* x = static_cast<const In*>(args.x) + i * args.row_stride + first;
      T* row = part.rows + i * kBlock;
      load_row(x, row, depth, scale);
      largest = largest_magnitude(row, depth, largest);
      // Around the first row, so that the mean of equal rows is that row to the last bit.
      for (int64_t k = 0; k < depth; ++k) part.mean[k] += row[k] - part.rows[k];
    }
    for (int64_t k = 0; k < depth; ++k) {
      part.mean[k] = part.rows[k] + part.mean[k] / T(n);
      mean_square += double(part.mean[k]) * double(part.mean[k]);
    }
    for (int64_t panel = 0; panel < panel_count; ++panel) {
      const int64_t top = panel * kPanel;
      const int64_t count = n - top < kPanel ? n - top : kPanel;
      for (int64_t i = top; i < top + count; ++i) {
        T* row = part.rows + i * kBlock;
        for (int64_t k = 0; k < depth; ++k) row[k] -= part.mean[k];
        round_row(row, depth, args.operand);
      }
      pack_panel(part.rows + top * kBlock, count, depth,
                 part.panels + panel * int64_t(kBlock) * kPanel);
    }
    accumulate_triangle(part.panels, panel_count, depth, part.sums, stride);
  }
  *part.mean_square = mean_square;
  *part.largest = largest;
}

// The exponent of `largest`, 0 where it is zero, infinite or not a number.
template <class T>
int exponent_of(T largest) {
  if (!(largest > 0) || !(largest - largest == 0)) return 0;
  int exponent = 0;
  for (; largest >= T(2); largest *= T(0.5)) ++exponent;
  for (; largest < T(1); largest *= T(2)) --exponent;
  return exponent;
}

template <class T>
int largest_exponent(const GramArgs& args, int parts) {
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
void gram_as(const GramArgs& args) {
  const int parts = part_count<T>(args.n, args.p, args.threads);
  const int64_t n = args.n, stride = padded(n);
  const bool rounds_to_half = args.operand == Operand::f16 && sizeof(T) == 4;
  int exponent = 0;
  if (rounds_to_half) {
    // Halves span 40 powers of two: the values must be placed among them before they are rounded,
    // below the largest, 2^16, with room for the subtraction.
#pragma omp parallel for schedule(static, 1) num_threads(parts) if (parts > 1)
    for (int t = 0; t < parts; ++t)
      largest_of_part<In, T>(args, part_at<T>(args.workspace, n, t), args.p * t / parts,
                             args.p * (t + 1) / parts);
    exponent = clamped<T>(largest_exponent<T>(args, parts) - 14);
  }
  for (;;) {
    const T scale = power_of_two<T>(-exponent);
#pragma omp parallel for schedule(static, 1) num_threads(parts) if (parts > 1)
    for (int t = 0; t < parts; ++t)
      sum_part<In, T>(args, part_at<T>(args.workspace, n, t), args.p * t / parts,
                      args.p * (t + 1) / parts, scale);
    if (exponent != 0 || rounds_to_half) break;
    const int found = clamped<T>(largest_exponent<T>(args, parts));
    if (found >= Range<T>::lowest && found <= Range<T>::highest) break;
    exponent = found;  // rare: once more, with the values scaled
  }
  // Multiplied by twice: its square may leave float64's range where the results do not.
  const double unscale = power_of_two<double>(exponent);
#pragma omp parallel for num_threads(parts) if (parts > 1)
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j <= i; ++j) {
      double sum = 0;
      for (int t = 0; t < parts; ++t)
        sum += part_at<T>(args.workspace, n, t).sums[i * stride + j];
      args.k[i * args.k_stride + j] = sum * unscale * unscale;
    }
  double mean_square = 0, spread = 0;
  for (int t = 0; t < parts; ++t) mean_square += *part_at<T>(args.workspace, n, t).mean_square;
  for (int64_t i = 0; i < n; ++i) spread += args.k[i * args.k_stride + i];
  args.stats[0] = mean_square * unscale * unscale;
  args.stats[1] = spread + double(n) * mean_square * unscale * unscale;
  args.stats[2] = spread;
}
}  // namespace

size_t gram_workspace(int64_t n, int64_t p, Dtype dtype, int threads) {
  return dtype == Dtype::f64 ? part_bytes<double>(n) * size_t(part_count<double>(n, p, threads))
                             : part_bytes<float>(n) * size_t(part_count<float>(n, p, threads));
}

void gram(const GramArgs& args) {
  switch (args.dtype) {
    case Dtype::f16: return gram_as<half_bits, float>(args);
    case Dtype::bf16: return gram_as<bfloat_bits, float>(args);
    case Dtype::f32: return gram_as<float, float>(args);
    case Dtype::f64: return gram_as<double, double>(args);
  }
}

}  // namespace FASTCKA_ISA
}  // namespace fastcka
