// Holds the CUDA kernels against naive loops in float64, on the GPU of cuda_emulation.h.
//
//   cmake -S . -B build/cuda -DFASTCKA_PYTHON=OFF -DFASTCKA_EMULATE_CUDA=ON -DFASTCKA_SANITIZE=ON
//   cmake --build build/cuda -j && build/cuda/fastcka_cuda_driver
//
// Every array is a heap block of exactly its size, so that the address sanitizer sees any overrun;
// outputs, workspaces and what lies between rows hold NaN beforehand.
#include <algorithm>
#include <cstdlib>
#include <numeric>
#include <string>

#include "../../csrc/kernels.h"

using namespace fastcka;
using namespace fastcka::cuda;
using Doubles = std::vector<double>;

namespace {

constexpr int64_t kBlock = 1024, kPadding = 256;
const Dtype kDtypes[] = {Dtype::f16, Dtype::bf16, Dtype::f32};
const Operand kOperands[] = {Operand::f16, Operand::bf16, Operand::as_accumulated};
const char* const kNames[] = {"f16", "bf16", "f32"};

std::mt19937 rng(1);
double random_normal() { return std::normal_distribution<double>()(rng); }

int passed = 0, failed = 0;
std::string context;  // the call under test, for the message

void check_near(const char* what, const Doubles& expected, const Doubles& got,
                const Doubles& bound) {
  size_t i = 0;
  while (i < expected.size() && std::fabs(got[i] - expected[i]) <= bound[i]) ++i;
  ++(i == expected.size() ? passed : failed);
  if (i < expected.size())
    std::printf("FAILED %s: %s[%zu] expected %.17g to within %.3g, came %.17g\n", context.c_str(),
                what, i, expected[i], bound[i], got[i]);
}
void check_near(const char* what, const Doubles& expected, const Doubles& got, double bound) {
  check_near(what, expected, got, Doubles(expected.size(), bound));
}

// A heap block of its size, all ones: NaN of floats.
template <class T>
struct Array {
  explicit Array(int64_t count_) : count(count_), data(new T[size_t(count_)]) {
    std::memset(static_cast<void*>(data.get()), 0xff, size_t(count) * sizeof(T));
  }
  explicit Array(const std::vector<T>& values) : Array(int64_t(values.size())) {
    std::copy(values.begin(), values.end(), data.get());
  }
  T* get() const { return data.get(); }
  Doubles values() const { return Doubles(data.get(), data.get() + count); }

  int64_t count;
  std::unique_ptr<T[]> data;
};

int64_t size_of(Dtype dtype) { return dtype == Dtype::f32 ? 4 : 2; }

// Writes a value as it is rounded to a type; returns that.
double put(Dtype dtype, double value, char* to) {
  if (dtype == Dtype::f32) {
    const float single = float(value);
    std::memcpy(to, &single, 4);
    return single;
  }
  const bool half = dtype == Dtype::f16;
  const uint16_t bits = half ? cuda_emulation::half_of(value) : cuda_emulation::bfloat_of(value);
  std::memcpy(to, &bits, 2);
  return half ? to_float(half_bits{bits}) : to_float(bfloat_bits{bits});
}

struct Activations {
  Doubles values;  // [n, p]
  std::unique_ptr<char[]> block;
  char* start;
  int64_t p, stride;

  // `shift` values behind a multiple of 16 bytes, `gap` values between rows.
  Activations(Dtype dtype, int64_t n, int64_t p_, int64_t shift, int64_t gap, double offset)
      : values(size_t(n * p_)), p(p_), stride(p_ + gap) {
    const int64_t size = size_of(dtype), length = shift + (n - 1) * stride + p;
    block.reset(new char[size_t(length * size)]);
    std::memset(block.get(), 0xff, size_t(length * size));
    start = block.get() + shift * size;
    Doubles common(static_cast<size_t>(p));
    for (double& value : common) value = offset * random_normal();
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < p; ++j)
        values[size_t(i * p + j)] =
            put(dtype, common[size_t(j)] + random_normal(), start + (i * stride + j) * size);
  }
};

struct TileCase {
  int64_t side;     // of the squares
  int64_t columns;  // of the tiles below them
  bool triangles = false;  // of two squares and what is below the first, in place of squares
};

struct Case {
  Dtype dtype;
  Operand operand;
  TileCase tile;
  int64_t n;
  std::vector<int64_t> widths;
  bool aligned;
  int64_t programs;
  double offset = 1;
};

// The products of the centred values as they are rounded, and the sums of their magnitudes.
void multiply(const Case& test, const Activations& x, const float* pivot, double scale, Doubles& k,
              Doubles& terms) {
  const int64_t n = test.n, p = x.p;
  const Dtype operand = test.operand == Operand::f16    ? Dtype::f16
                        : test.operand == Operand::bf16 ? Dtype::bf16
                                                        : Dtype::f32;
  const bool as_they_are = test.dtype == operand && operand != Dtype::f32;
  Doubles rounded(size_t(n * p));
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < p; ++j) {
      char ignored[4];
      double common = double(pivot[j]) * scale;
      if (as_they_are) common = put(operand, put(operand, pivot[j], ignored) * scale, ignored);
      double value = x.values[size_t(i * p + j)] * scale - common;
      // The difference of two floats is rounded before it is an operand; that of 16 bits is one.
      if (!as_they_are) value = float(value);
      rounded[size_t(i * p + j)] = put(operand, value, ignored) / scale;
    }
  for (int64_t r = 0; r < n; ++r)
    for (int64_t c = 0; c <= r; ++c) {
      double sum = 0, magnitude = 0;
      for (int64_t j = 0; j < p; ++j) {
        const double product = rounded[size_t(r * p + j)] * rounded[size_t(c * p + j)];
        sum += product;
        magnitude += std::fabs(product);
      }
      k.push_back(sum);
      terms.push_back(magnitude);
    }
}

// [layers, n, n] to the lower triangles one after the other.
Doubles triangles(const Doubles& k, int64_t layers, int64_t n) {
  Doubles lower;
  for (int64_t row = 0; row < layers * n; ++row)
    lower.insert(lower.end(), k.begin() + row * n, k.begin() + row * n + row % n + 1);
  return lower;
}

void check_gram(const Case& test) {
  const int64_t n = test.n, layers = int64_t(test.widths.size());
  const int64_t piece = test.aligned ? 16 / size_of(test.dtype) : 1;
  context = std::string(kNames[int(test.dtype)]) + " as " +
            (test.operand == Operand::as_accumulated ? "tf32" : kNames[int(test.operand) - 1]) +
            (test.tile.triangles ? ", triangles" : "") + ", tiles of " +
            std::to_string(test.tile.side) + " and " +
            std::to_string(test.tile.columns) + ", n=" + std::to_string(n) +
            ", p=" + std::to_string(test.widths[0]) + (test.aligned ? "" : ", by value");
  std::vector<Activations> xs;
  std::vector<Layer> table;
  std::vector<int64_t> starts{0};
  int64_t blocks = 0;
  for (int64_t p : test.widths) {
    xs.emplace_back(test.dtype, n, p, test.aligned ? 0 : 1, test.aligned ? piece : 3, test.offset);
    const int64_t away = (xs.back().start - xs[0].start) / size_of(test.dtype);
    table.push_back({away / piece, xs.back().stride / piece, p / piece, starts.back() / 16});
    starts.push_back(starts.back() + (p + kPadding - 1) / kPadding * kPadding);
    blocks = std::max(blocks, (p + kBlock - 1) / kBlock);
  }

  const Array<Layer> layer_table(table);
  const Array<float> pivots(starts.back());
  const Array<int32_t> largest(std::vector<int32_t>(size_t(layers), 0));
  const Array<double> norms(layers * blocks);
  SampleArgs sampled;
  sampled.base = xs[0].start;
  sampled.dtype = test.dtype;
  sampled.piece = piece;
  sampled.layers = layer_table.get();
  sampled.count = layers;
  sampled.n = n;
  sampled.rows = n < 128 ? 2 : 4;
  sampled.block = kBlock;
  sampled.padding = kPadding;
  sampled.blocks = blocks;
  sampled.pivots = pivots.get();
  sampled.largest = largest.get();
  sampled.norms = norms.get();
  sample(sampled, 0, nullptr);
  for (int64_t layer = 0; layer < layers; ++layer) {
    const Activations& x = xs[size_t(layer)];
    Doubles means(size_t(starts[size_t(layer) + 1] - starts[size_t(layer)]), 0.0);
    double most = 0, squares = 0, norm = 0;
    for (int64_t r = 0; r < sampled.rows; ++r)
      for (int64_t j = 0; j < x.p; ++j) {
        const double value = x.values[size_t(r * n / sampled.rows * x.p + j)];
        means[size_t(j)] += value / double(sampled.rows);
        most = std::max(most, std::fabs(value));
        squares += value * value / double(sampled.rows);
      }
    const float* mine = pivots.get() + starts[size_t(layer)];
    check_near("pivot", means, Doubles(mine, mine + means.size()), 1e-6 * most);
    check_near("largest", {most},
               {double(__int_as_float(largest.get()[layer]))}, 0.0);
    for (int64_t b = 0; b < blocks; ++b) norm += norms.get()[layer * blocks + b];
    check_near("norm", {squares}, {norm}, 1e-12 * squares);
  }

  const Array<double> k(layers * n * n);
  const int64_t step = 128 / std::max<int64_t>(
                                 size_of(test.dtype),
                                 test.operand == Operand::as_accumulated ? 4 : 2);
  const TileKind diagonal = test.tile.triangles ? TileKind::triangle : TileKind::square;
  const int64_t side = test.tile.side * (test.tile.triangles ? 2 : 1);
  for (TileKind kind : {diagonal, TileKind::pair}) {
    std::vector<std::pair<int64_t, int64_t>> places;
    for (int64_t row = 0; row < n; row += kind == TileKind::pair ? test.tile.side : side)
      if (kind != TileKind::pair)
        places.push_back({row, row + side - test.tile.side});
      else
        for (int64_t column = 0; column < row / side * side; column += test.tile.columns)
          places.push_back({row, column});
    if (places.empty()) continue;
    std::vector<Segment> segments;
    std::vector<Work> works;
    std::vector<int64_t> ends;  // of programs, in steps
    int64_t total = 0;
    for (int64_t p : test.widths) total += (p + step - 1) / step * int64_t(places.size());
    const int64_t run = (total + test.programs - 1) / test.programs;
    std::vector<int64_t> begins{0};
    int64_t left = run;
    for (int64_t layer = 0; layer < layers; ++layer)
      for (const auto& place : places) {
        const int64_t steps = (test.widths[size_t(layer)] + step - 1) / step;
        Work work{layer, place.first, place.second, int64_t(segments.size()), 0};
        for (int64_t done = 0; done < steps;) {
          const int64_t taken = std::min(left, steps - done);
          Segment segment;
          static_cast<Layer&>(segment) = table[size_t(layer)];
          segment.layer = layer;
          segment.row_a = place.first;
          segment.row_b = place.second;
          segment.start = done;
          segment.stop = done += taken;
          segments.push_back(segment);
          if (!(left -= taken)) {
            begins.push_back(int64_t(segments.size()));
            left = run;
          }
        }
        work.last = int64_t(segments.size());
        works.push_back(work);
      }
    if (left < run) begins.push_back(int64_t(segments.size()));

    const Array<Segment> segment_table(segments);
    const Array<int64_t> begin_table(begins);
    ProductsArgs args;
    args.base = xs[0].start;
    args.dtype = test.dtype;
    args.operand = test.operand;
    args.piece = piece;
    args.kind = kind;
    args.rows = test.tile.side;
    args.columns = kind == TileKind::pair ? test.tile.columns : test.tile.side;
    args.step = step;
    args.segments = segment_table.get();
    args.begins = begin_table.get();
    args.programs = int64_t(begins.size()) - 1;
    args.n = n;
    args.pivots = pivots.get();
    args.largest = largest.get();
    const Array<float> partials(int64_t(segments.size()) * args.rows * args.columns *
                                (kind == TileKind::triangle ? 3 : 1));
    args.partials = partials.get();
    products(args, 0, nullptr);

    const Array<Work> work_table(works);
    AddUpArgs sums;
    sums.works = work_table.get();
    sums.kind = kind;
    sums.count = int64_t(works.size());
    sums.n = n;
    sums.rows = args.rows;
    sums.columns = args.columns;
    sums.partials = partials.get();
    sums.largest = largest.get();
    sums.k = k.get();
    add_up(sums, 0, nullptr);
  }
  Doubles expected, bound;
  for (int64_t layer = 0; layer < layers; ++layer) {
    int exponent;
    std::frexp(__int_as_float(largest.get()[layer]), &exponent);
    multiply(test, xs[size_t(layer)], pivots.get() + starts[size_t(layer)],
             std::ldexp(1.0, 1 - exponent), expected, bound);
  }
  // Sums of products in float32, 16 or 8 of them at once; three products of TF32 lose the fourth.
  const double sums = 8 + double(*std::max_element(test.widths.begin(), test.widths.end())) / 8;
  for (double& each : bound)
    each *= (std::min(sums, 512.0) + (test.operand == Operand::as_accumulated ? 16 : 0)) * 0x1p-24;
  Doubles lower = triangles(k.values(), layers, n);
  check_near("k", expected, lower, bound);

  for (int64_t layer = 0; layer < layers; ++layer) {
    Doubles means(size_t(n), 0.0);
    double* mine = lower.data() + layer * n * (n + 1) / 2;
    const auto at = [](int64_t r, int64_t c) {
      return r < c ? c * (c + 1) / 2 + r : r * (r + 1) / 2 + c;
    };
    double mean = 0;
    for (int64_t r = 0; r < n; ++r) {
      for (int64_t c = 0; c < n; ++c) means[size_t(r)] += mine[at(r, c)] / double(n);
      mean += means[size_t(r)] / double(n);
    }
    for (int64_t r = 0; r < n; ++r)
      for (int64_t c = 0; c <= r; ++c) mine[at(r, c)] -= means[size_t(r)] + means[size_t(c)] - mean;
  }
  const Array<double> means(layers * n);
  recentre({k.get(), means.get(), layers, n}, 0, nullptr);
  check_near("k around its mean", lower, triangles(k.values(), layers, n),
             1e-12 * *std::max_element(lower.begin(), lower.end()));
}

void check_grams() {
  // Fewer rows than a tile, whole tiles, and a row more.
  const std::vector<std::pair<TileCase, std::vector<int64_t>>> tiles = {
      {{64, 64}, {5, 64}}, {{128, 128}, {65, 257}}, {{128, 64}, {130}}};
  for (Dtype dtype : kDtypes)
    for (Operand operand : kOperands)
      for (const auto& tile : tiles)
        for (int64_t n : tile.second) {
          check_gram({dtype, operand, tile.first, n, {72, 8}, true, 3});
          check_gram({dtype, operand, tile.first, n, {67}, false, 2});
        }
  for (int type : {0, 1})  // the first two dtypes and operands are those of 16 bits
    for (int64_t n : {130, 256, 300})
      check_gram({kDtypes[type], kOperands[type], {128, 128, true}, n, {200, 72}, true, 3});
  for (Operand operand : kOperands) {
    // Longer than what is added up in a row; alone and by many; narrower than a piece.
    check_gram({Dtype::f16, operand, {64, 64}, 6, {8'320}, true, 1});
    check_gram({Dtype::f32, operand, {64, 64}, 6, {1'500, 64}, true, 7});
    check_gram({Dtype::bf16, operand, {64, 64}, 4, {1, 3}, false, 5});
    check_gram({Dtype::f32, operand, {64, 64}, 9, {200}, true, 2, 1e4});
  }
}

// More tiles than a grid takes of anything but its first.
void check_many_works() {
  context = "add_up of many tiles";
  const int64_t count = 65'537, slots = 5;
  const Array<float> partials(slots * 256);
  for (int64_t i = 0; i < partials.count; ++i) partials.get()[i] = float(random_normal());
  std::vector<Work> works;
  Doubles expected;
  for (int64_t layer = 0; layer < count; ++layer) {
    works.push_back({layer, 0, 0, layer % slots, layer % slots + 1});
    expected.push_back(partials.get()[layer % slots * 256]);
  }
  const Array<Work> table(works);
  const Array<int32_t> largest(std::vector<int32_t>(size_t(count), 0));
  const Array<double> k(count);
  add_up({table.get(), TileKind::square, count, 1, 16, 16, partials.get(), largest.get(), k.get()},
         0, nullptr);
  check_near("k", expected, k.values(), 0.0);
}

// blocks: of norms, of rows less a common row; 0 of rows less their mean.
void check_finish(int64_t layers, int64_t n, bool biased, int64_t blocks) {
  const bool pivoted = blocks > 0;
  context = "finish, n=" + std::to_string(n) + (biased ? ", biased" : ", unbiased") +
            (pivoted ? ", pivoted" : "");
  const int64_t length = biased ? n * (n + 1) / 2 : n * (n - 1) / 2;
  const Array<double> k(layers * n * n), stats(layers * (pivoted ? blocks : 3)),
      sums_space(layers * n * 2), squares(layers * n * 2);
  for (int64_t row = 0; row < layers * n; ++row)
    for (int64_t c = 0; c <= row % n; ++c) k.get()[row * n + c] = random_normal() + 1;
  for (int64_t i = 0; i < stats.count; ++i) stats.get()[i] = std::fabs(random_normal());
  const Array<double> packed(layers * length + 1), diagonal(layers * n), row_sums(layers * n),
      summary(layers * 5);
  FinishAllArgs args;
  args.k = k.get();
  args.stats = stats.get();
  args.blocks = stats.count / layers;
  args.pivoted = pivoted;
  args.out = {packed.get() + 1, diagonal.get(), row_sums.get(), summary.get()};
  args.packed_stride = length;
  args.diagonal_stride = args.row_sums_stride = n;
  args.summary_stride = 5;
  args.sums = sums_space.get();
  args.squares = squares.get();
  args.layers = layers;
  args.n = n;
  args.estimator = biased ? Estimator::biased : Estimator::unbiased;
  cuda::finish(args, 0, nullptr);
  for (int64_t layer = 0; layer < layers; ++layer) {
    const double size = double(n);
    const double* mine = k.get() + layer * n * n;
    Doubles means(size_t(n), 0.0);
    double mean = 0;
    for (int64_t r = 0; r < n && pivoted; ++r) {
      for (int64_t c = 0; c < n; ++c)
        means[size_t(r)] += mine[r < c ? c * n + r : r * n + c] / size;
      mean += means[size_t(r)] / size;
    }
    const auto at = [&](int64_t r, int64_t c) {
      return mine[r < c ? c * n + r : r * n + c] - means[size_t(r)] - means[size_t(c)] + mean;
    };
    Doubles sums(size_t(n), 0.0), diagonals, own, centred;
    double total = 0, hollow = 0, trace = 0, spread = 0, norm = 0;
    for (int64_t r = 0; r < n; ++r) {
      for (int64_t c = 0; c < n; ++c) {
        if (c != r) sums[size_t(r)] += at(r, c);
        if (c != r) hollow += at(r, c) * at(r, c);
      }
      trace += at(r, r) * at(r, r);
      spread += at(r, r);
      diagonals.push_back(at(r, r));
      own.push_back(sums[size_t(r)] + (biased ? at(r, r) : 0));
      total += own.back();
    }
    for (int64_t r = 0; r < n; ++r)
      for (int64_t c = 0; c < r + biased; ++c) {
        const double value =
            biased ? at(r, c) - (own[size_t(r)] + own[size_t(c)]) / size + total / size / size
                   : at(r, c) - (own[size_t(r)] + own[size_t(c)]) / (size - 2) +
                         total / (size - 1) / (size - 2);
        centred.push_back(r == c ? value : value * std::sqrt(2.0));
        norm += centred.back() * centred.back();
      }
    const auto rows = [&](const Array<double>& from, int64_t first, int64_t count) {
      return Doubles(from.get() + first + layer * count, from.get() + first + (layer + 1) * count);
    };
    check_near("packed", centred, rows(packed, 1, length), 1e-12 * size);
    check_near("row_sums", sums, rows(row_sums, 0, n), 1e-12 * size);
    check_near("diagonal", diagonals, rows(diagonal, 0, n), 1e-12 * size);
    const double* stat = stats.get() + args.blocks * layer;
    double whole = std::max(spread, size * std::accumulate(stat, stat + blocks, 0.0));
    double common = whole - spread;
    if (!pivoted) {
      common = size * stat[0];
      whole = stat[1];
      spread = stat[2];
    }
    const Doubles expected = {norm, hollow, spread, whole,
                              std::sqrt((hollow + trace + common * common) / size / size /
                                        (norm / (size * (size - 1))))};
    Doubles bound;
    for (double value : expected) bound.push_back(1e-12 * size * std::fabs(value));
    check_near("summary", expected, rows(summary, 0, 5), bound);
  }
}

void check_hsic(int64_t rows_a, int64_t rows_b, int64_t length, int64_t run, bool symmetric) {
  context = "hsic_pairs of " + std::to_string(rows_a) + " and " + std::to_string(rows_b) +
            " rows of " + std::to_string(length);
  const Array<double> a(rows_a * (length + 1)), b(rows_b * (length + 1));
  const Array<double>& second = symmetric ? a : b;
  for (const Array<double>* each : {&a, &b})
    for (int64_t i = 0; i < each->count; ++i)
      if (i % (length + 1) < length) each->get()[i] = random_normal();
  const int64_t runs = (length + run - 1) / run;
  const Array<double> partials(runs * rows_a * rows_b), out(rows_a * (rows_b + 2) - 2);
  HsicRunsArgs args;
  args.a = a.get();
  args.b = second.get();
  args.rows_a = rows_a;
  args.rows_b = rows_b;
  args.length = length;
  args.a_stride = args.b_stride = length + 1;
  args.out = out.get();
  args.out_stride = rows_b + 2;
  args.runs = runs;
  args.run = run;
  args.partials = partials.get();
  cuda::hsic_pairs(args, 0, nullptr);
  Doubles expected, got, mirrored;
  for (int64_t i = 0; i < rows_a; ++i)
    for (int64_t j = 0; j < rows_b; ++j) {
      double sum = 0;
      for (int64_t k = 0; k < length; ++k)
        sum += a.get()[i * (length + 1) + k] * second.get()[j * (length + 1) + k];
      expected.push_back(sum);
      got.push_back(out.get()[i * (rows_b + 2) + j]);
      if (symmetric) mirrored.push_back(out.get()[j * (rows_b + 2) + i]);
    }
  check_near("out", expected, got, 1e-13 * double(length));
  if (symmetric) check_near("out on both sides", mirrored, got, 0.0);
}

}  // namespace

int main() {
  check_grams();
  check_many_works();
  for (bool biased : {false, true})
    for (int64_t n : {4, 33, 200})
      for (int64_t blocks : {0, 1, 130}) check_finish(3, n, biased, blocks);
  check_hsic(1, 1, 6, 32, false);
  check_hsic(33, 7, 100, 32, false);
  check_hsic(35, 35, 70, 64, true);
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed ? 1 : 0;
}
