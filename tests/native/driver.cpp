// Holds the CPU kernels against naive loops in float64, with neither Python nor a test framework:
// for the sanitizers, and for processors that run under an emulator.
//
//   cmake -S . -B build/sanitize -DFASTCKA_PYTHON=OFF -DFASTCKA_DRIVER=ON -DFASTCKA_SANITIZE=ON
//   cmake --build build/sanitize -j && FASTCKA_ISA=avx2 build/sanitize/fastcka_driver
//
// `gram` sees three kinds of values:
// - whole numbers, in pairs around a common row: mean, products and sums are exact in every type,
//   so that the result has one right answer, to the last bit, for any shape and thread count;
// - one feature a pair of rows: every entry is a single product and shows how values were rounded;
// - random values, within a bound that follows from the unit roundoff.
// Every array is a heap block of exactly its size, so that the address sanitizer sees any overrun.
// Outputs, workspace and the padding of inputs hold NaN beforehand.
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "../../csrc/kernels.h"

using namespace fastcka;
using Doubles = std::vector<double>;

namespace {

const double kNaN = std::nan("");
const double kInf = HUGE_VAL;
const double kDoubleRoundoff = DBL_EPSILON / 2;
const int kThreads[] = {1, 2, 3, 7};
const Dtype kDtypes[] = {Dtype::f16, Dtype::bf16, Dtype::f32, Dtype::f64};
const Operand kOperands[] = {Operand::as_accumulated, Operand::f16, Operand::bf16};

const CpuKernels* kernels;
std::mt19937 rng(1);

int64_t random_int(int64_t low, int64_t high) {
  return std::uniform_int_distribution<int64_t>(low, high)(rng);
}
double random_normal() { return std::normal_distribution<double>()(rng); }

// --- Checks

int passed = 0, failed = 0;
std::string context;  // the call under test, for the message

void check(bool ok, const std::string& what) {
  ++(ok ? passed : failed);
  if (!ok) std::printf("FAILED %s: %s\n", context.c_str(), what.c_str());
}

std::string text(double x) {
  char buffer[64];
  std::snprintf(buffer, sizeof(buffer), "%.17g", x);
  return buffer;
}

bool same(double a, double b) { return a == b || (std::isnan(a) && std::isnan(b)); }
bool same_bits(double a, double b) { return std::memcmp(&a, &b, sizeof(a)) == 0; }

// One check over all entries, equal where `bound` is empty; the message names the first that fails.
void check_near(const char* what, const Doubles& expected, const Doubles& got,
                const Doubles& bound = {}) {
  size_t i = 0;
  for (; i < expected.size(); ++i)
    if (!same(got[i], expected[i]) &&
        !(!bound.empty() && std::fabs(got[i] - expected[i]) <= bound[i]))
      break;
  check(i == expected.size(),
        i == expected.size()
            ? ""
            : std::string(what) + "[" + std::to_string(i) + "] expected " + text(expected[i]) +
                  (bound.empty() ? "" : " to within " + text(bound[i])) + ", came " + text(got[i]));
}

void check_bits(const char* what, const Doubles& expected, const Doubles& got) {
  size_t i = 0;
  while (i < expected.size() && same_bits(expected[i], got[i])) ++i;
  check(i == expected.size(), i == expected.size()
                                  ? ""
                                  : std::string(what) + "[" + std::to_string(i) + "] expected " +
                                        text(expected[i]) + " to the bit, came " + text(got[i]));
}

void check_none_finite(const char* what, const Doubles& got) {
  size_t i = 0;
  while (i < got.size() && !std::isfinite(got[i])) ++i;
  check(i == got.size(), i == got.size() ? ""
                                         : std::string(what) + "[" + std::to_string(i) +
                                               "] expected inf or nan, came " + text(got[i]));
}

// --- Memory

// `count` doubles that end where the heap block ends, `shift` doubles after its 16-byte boundary.
class Array {
 public:
  Array(int64_t count, int64_t shift = 0)
      : count_(count), shift_(shift), block_(new double[size_t(count + shift)]) {
    for (int64_t i = 0; i < count + shift; ++i) block_[i] = kNaN;
  }
  double* data() { return block_.get() + shift_; }
  Doubles values() const {
    return Doubles(block_.get() + shift_, block_.get() + shift_ + count_);
  }
  bool front_untouched() const {
    for (int64_t i = 0; i < shift_; ++i)
      if (!same_bits(block_[i], kNaN)) return false;
    return true;
  }

 private:
  int64_t count_, shift_;
  std::unique_ptr<double[]> block_;
};

// A matrix whose rows lie `stride` apart, the last one without padding.
class Matrix {
 public:
  Matrix(int64_t rows, int64_t columns, int64_t stride, int64_t shift = 0)
      : rows_(rows), columns_(columns), stride_(stride),
        array_(rows ? (rows - 1) * stride + columns : 0, shift) {}
  double* data() { return array_.data(); }
  double& at(int64_t i, int64_t j) { return array_.data()[i * stride_ + j]; }
  void fill(const Doubles& values) {
    for (int64_t i = 0; i < rows_; ++i)
      for (int64_t j = 0; j < columns_; ++j) at(i, j) = values[size_t(i * columns_ + j)];
  }
  Doubles values() {
    Doubles values;
    for (int64_t i = 0; i < rows_; ++i)
      for (int64_t j = 0; j < columns_; ++j) values.push_back(at(i, j));
    return values;
  }
  // Padding columns, and the entries above the diagonal where only the triangle may be written.
  void check_untouched(const char* what, bool triangle) {
    bool ok = array_.front_untouched();
    for (int64_t i = 0; i < rows_; ++i)
      for (int64_t j = triangle ? i + 1 : columns_; j < (i + 1 < rows_ ? stride_ : columns_); ++j)
        ok = ok && same_bits(at(i, j), kNaN);
    check(ok, std::string(what) + " was written outside its part, expected untouched nan");
  }

 private:
  int64_t rows_, columns_, stride_;
  Array array_;
};

// --- Types. The conversions share nothing with csrc/cpu/convert.h.

struct TypeInfo {
  const char* name;
  size_t size;
  int digits;           // significant bits
  int lowest_exponent;  // of frexp, of the smallest normal value
};
const TypeInfo& info(Dtype dtype) {
  static const TypeInfo infos[] = {
      {"f16", 2, 11, -13}, {"bf16", 2, 8, -125}, {"f32", 4, 24, -125}, {"f64", 8, 53, -1021}};
  return infos[int(dtype)];
}
const char* name(Operand operand) {
  return operand == Operand::f16 ? "f16" : operand == Operand::bf16 ? "bf16" : "as accumulated";
}

// To the nearest value of the type, ties to even; the range is not limited above.
double rounded(double x, const TypeInfo& type) {
  if (x == 0 || !std::isfinite(x)) return x;
  int exponent = 0;
  std::frexp(x, &exponent);
  const int last = std::max(exponent, type.lowest_exponent) - type.digits;
  return std::ldexp(std::nearbyint(std::ldexp(x, -last)), last);
}

// The 16 bits of a value that has been rounded to f16 or bf16.
uint16_t encoded(double x, const TypeInfo& type) {
  const int fraction_bits = type.digits - 1, exponent_bits = 16 - type.digits;
  const int all = ((1 << exponent_bits) - 1) << fraction_bits;
  const int sign = std::signbit(x) ? 0x8000 : 0;
  x = std::fabs(x);
  if (std::isnan(x)) return uint16_t(all | 1 << (fraction_bits - 1));
  if (std::isinf(x)) return uint16_t(sign | all);
  int exponent = 0;
  std::frexp(x, &exponent);
  exponent = x == 0 ? type.lowest_exponent : std::max(exponent, type.lowest_exponent);
  // The leading bit, where there is one, carries into the exponent field.
  return uint16_t(sign | (((exponent - type.lowest_exponent) << fraction_bits) +
                          int(std::ldexp(x, type.digits - exponent))));
}

void store(Dtype dtype, double value, char* at) {
  if (dtype == Dtype::f64) {
    std::memcpy(at, &value, 8);
  } else if (dtype == Dtype::f32) {
    const float single = float(value);
    std::memcpy(at, &single, 4);
  } else {
    const uint16_t bits = encoded(rounded(value, info(dtype)), info(dtype));
    std::memcpy(at, &bits, 2);
  }
}

#if defined(__ARM_FP16_FORMAT_IEEE)
#define HALF_OF_COMPILER __fp16
#elif defined(__x86_64__) && defined(__clang__) && __clang_major__ >= 15
#define HALF_OF_COMPILER _Float16
#elif defined(__x86_64__) && !defined(__clang__) && __GNUC__ >= 12
#define HALF_OF_COMPILER _Float16
#endif

void check_conversions() {
#ifdef HALF_OF_COMPILER
  context = "conversion of the driver";
  bool ok = true;
  for (int i = 0; i < 20000; ++i) {
    const double x = std::ldexp(random_normal(), int(random_int(-30, 13)));
    const HALF_OF_COMPILER half = HALF_OF_COMPILER(x);
    uint16_t bits;
    std::memcpy(&bits, &half, 2);
    ok = ok && rounded(x, info(Dtype::f16)) == double(half) &&
         encoded(double(half), info(Dtype::f16)) == bits;
  }
  check(ok, "expected that of the compiler, came another");
#endif
}

// --- gram

struct GramCall {
  Dtype dtype;
  Operand operand;
  int64_t n, p;
  int threads;
  int64_t padding = 0;  // of rows of x and k, in elements
  int64_t shift = 0;    // of the base addresses, in elements

  Doubles k = {}, stats = {};  // k: the lower triangle, row by row

  GramCall& run(const Doubles& x, int scale = 0) {
    context = std::string("gram ") + info(dtype).name + ", operand " + name(operand) +
              ", n=" + std::to_string(n) + ", p=" + std::to_string(p) +
              ", threads=" + std::to_string(threads) + ", padding=" + std::to_string(padding) +
              ", shift=" + std::to_string(shift) + ", scale=2^" + std::to_string(scale);
    const size_t size = info(dtype).size;
    const int64_t stride = p + padding, count = shift + (n - 1) * stride + p;
    std::unique_ptr<char[]> block(new char[size_t(count) * size]);
    for (int64_t i = 0; i < count; ++i) store(dtype, kNaN, block.get() + size_t(i) * size);
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < p; ++j)
        store(dtype, std::ldexp(x[size_t(i * p + j)], scale),
              block.get() + size_t(shift + i * stride + j) * size);

    const size_t bytes = kernels->gram_workspace(n, p, dtype, threads);
    std::unique_ptr<void, void (*)(void*)> workspace(std::aligned_alloc(64, bytes), std::free);
    std::memset(workspace.get(), 0xff, bytes);  // NaN in every type
    Matrix out(n, n, n + padding, shift);
    Array out_stats(3, shift);
    GramArgs args;
    args.x = block.get() + size_t(shift) * size;
    args.n = n;
    args.p = p;
    args.row_stride = stride;
    args.dtype = dtype;
    args.operand = operand;
    args.k = out.data();
    args.k_stride = n + padding;
    args.stats = out_stats.data();
    args.workspace = workspace.get();
    args.threads = threads;
    kernels->gram(args);

    out.check_untouched("k", true);
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j <= i; ++j) k.push_back(out.at(i, j));
    stats = out_stats.values();
    return *this;
  }
};

// Of the type in which products are added up.
double roundoff_of(Dtype dtype) {
  return dtype == Dtype::f64 ? kDoubleRoundoff : std::ldexp(1.0, -24);
}

// Whole numbers: a common row plus rows that cancel in pairs, in random order.
struct Whole {
  int64_t n, p;
  Doubles x, k;  // k: the lower triangle
  double common = 0, spread = 0;

  // |x| <= 24 where no offset is given, differences <= 16, sums of 256 products <= 2^14.
  Whole(int64_t n_, int64_t p_, double offset = 0) : n(n_), p(p_), x(size_t(n * p)) {
    std::vector<int64_t> order(static_cast<size_t>(n));
    for (int64_t i = 0; i < n; ++i) order[size_t(i)] = i;
    std::shuffle(order.begin(), order.end(), rng);
    Doubles centred(size_t(n * p), 0.0);
    for (int64_t j = 0; j < p; ++j) {
      const double c = offset + double(random_int(-16, 16));
      common += c * c;
      for (int64_t pair = 0; pair + 1 < n; pair += 2) {
        const double v = double(random_int(-8, 8));
        centred[size_t(order[size_t(pair)] * p + j)] = v;
        centred[size_t(order[size_t(pair + 1)] * p + j)] = -v;
      }
      for (int64_t i = 0; i < n; ++i) x[size_t(i * p + j)] = c + centred[size_t(i * p + j)];
    }
    for (int64_t i = 0; i < n; ++i)
      for (int64_t l = 0; l <= i; ++l) {
        double sum = 0;
        for (int64_t j = 0; j < p; ++j)
          sum += centred[size_t(i * p + j)] * centred[size_t(l * p + j)];
        k.push_back(sum);
        if (i == l) spread += sum;
      }
  }

  void check_call(GramCall call, int scale = 0) const {
    call.run(x, scale);
    Doubles scaled;
    for (double value : k) scaled.push_back(std::ldexp(value, 2 * scale));
    check_near("k", scaled, call.k);
    // Below 2^-1022 the sums over rows are rounded.
    check_near("stats",
               {std::ldexp(common, 2 * scale),
                std::ldexp(spread, 2 * scale) + std::ldexp(double(n) * common, 2 * scale),
                std::ldexp(spread, 2 * scale)},
               call.stats, Doubles(3, double(n + 4) * DBL_TRUE_MIN));
  }
};

void check_gram_shapes() {
  const int64_t ns[] = {1, 2, 3, 4, 5, 7, 15, 16, 17, 31, 33, 64, 100};
  const int64_t ps[] = {1, 2, 3, 15, 17, 255, 256, 257, 513, 4097};
  std::vector<std::pair<int64_t, int64_t>> shapes;
  for (int64_t n : ns)
    for (int64_t p : {17, 257}) shapes.emplace_back(n, p);
  for (int64_t p : ps)
    for (int64_t n : {3, 17}) shapes.emplace_back(n, p);
  for (int64_t n : {64, 100}) shapes.emplace_back(n, 4097);
  int64_t turn = 0;
  for (const auto& shape : shapes) {
    const Whole whole(shape.first, shape.second);
    for (Dtype dtype : kDtypes)
      for (Operand operand : kOperands)
        for (int threads : kThreads) {
          ++turn;
          whole.check_call(
              {dtype, operand, whole.n, whole.p, threads, turn % 3 * 2, turn % 5});
        }
  }
}

void check_gram_scales() {
  // Subnormal, out of the range of squares, and the largest values of each type.
  const std::vector<int> scales[] = {{-24, -20, 11},
                                     {-130, -100, -60, 60, 83, 123},
                                     {-149, -140, -100, -46, -44, 52, 54, 83, 123},
                                     {-1074, -540, -536, -500, -306, 396, 450, 505, 540, 1019}};
  for (Dtype dtype : kDtypes)
    for (int scale : scales[int(dtype)])
      for (Operand operand : kOperands) {
        Whole(5, 40).check_call({dtype, operand, 5, 40, 2, 1, 1}, scale);
        Whole(18, 300).check_call({dtype, operand, 18, 300, 3, 0, 0}, scale);
      }
  // A common row whose square overflows, and differences whose squares do not.
  for (int scale : {0, 200, 485, 495})
    Whole(6, 20, std::ldexp(1.0, 40))
        .check_call({Dtype::f64, Operand::as_accumulated, 6, 20, 1}, scale);
  // The largest half, in f16: squares 2047^2 2^10, of which four are exact in float32.
  for (Operand operand : {Operand::as_accumulated, Operand::f16})
    for (int64_t p : {1, 4}) {
      Doubles x;
      for (double sign : {1.0, -1.0, -1.0, 1.0}) x.insert(x.end(), size_t(p), sign * 65504);
      GramCall call{Dtype::f16, operand, 4, p, 1};
      call.run(x);
      const double square = 65504.0 * 65504.0 * double(p);
      check_near("k",
                 {square,                        //
                  -square, square,               //
                  -square, square, square,       //
                  square, -square, -square, square},
                 call.k);
    }
}

// Values at, just beside and between the ties of a type with `digits` significant bits.
double near_tie(int digits, int lowest, int highest) {
  const int64_t step = int64_t(1) << (24 - digits);
  const int64_t kept = random_int(int64_t(1) << (digits - 1), (int64_t(1) << digits) - 1);
  const int64_t rest[] = {0, 1, step / 2 - 1, step / 2, step / 2 + 1, random_int(0, step - 1)};
  return std::ldexp(double(kept * step + rest[random_int(0, 5)]),
                    int(random_int(lowest, highest)) - 23) *
         (random_int(0, 1) ? 1 : -1);
}

void check_gram_rounding() {
  for (Dtype dtype : kDtypes)
    for (Operand operand : kOperands)
      for (int64_t p : {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 47, 64})
        for (int threads : {1, 3}) {
          // Around a first row of zeros, with values of both signs, every mean is exactly zero.
          const int64_t n = 2 * p + 1;
          const TypeInfo& type = info(operand == Operand::bf16 ? Dtype::bf16 : Dtype::f16);
          Doubles x(size_t(n * p), 0.0), values;
          double largest = 0;
          for (int64_t j = 0; j < p; ++j) {
            double value = operand == Operand::f16 ? near_tie(11, -33, 14) : near_tie(8, -15, 15);
            if (dtype == Dtype::f16) value = near_tie(11, -24, 15);  // subnormals included
            if (dtype == Dtype::f64) value = random_normal();
            value = dtype == Dtype::f64 ? value : double(float(rounded(value, info(dtype))));
            values.push_back(value);
            x[size_t((2 * j + 1) * p + j)] = value;
            x[size_t((2 * j + 2) * p + j)] = -value;
            largest = std::max(largest, std::fabs(value));
          }
          GramCall call{dtype, operand, n, p, threads, 3, 1};
          call.run(x);
          // f16: the largest value comes to lie in [2^14, 2^15).
          int exponent = 0;
          if (operand == Operand::f16 && largest > 0) {
            std::frexp(largest, &exponent);
            exponent -= 15;
          }
          Doubles expected;
          for (int64_t i = 0; i < n; ++i)
            for (int64_t l = 0; l <= i; ++l) {
              const int64_t j = (i - 1) / 2;
              double product = 0;
              if (i > 0 && l > 0 && (l - 1) / 2 == j) {
                double value = values[size_t(j)];
                if (dtype != Dtype::f64 && operand != Operand::as_accumulated)
                  value = std::ldexp(rounded(std::ldexp(value, -exponent), type), exponent);
                // float32 rounds it, except where two halves are multiplied.
                product = dtype == Dtype::f64 || operand == Operand::f16
                              ? value * value
                              : double(float(value) * float(value));
                if (i != l) product = -product;
              }
              expected.push_back(product);
            }
          check_near("k", expected, call.k);
        }
}

// k and stats in float64, and how far the kernel's may lie from them. With u the unit roundoff of
// the accumulated type, D_j = sum_i |x_ij - x_0j| and r the roundoff of the operand,
//   |error of c_j|        <= 4 u (|c_j| + D_j)            for the kernel and the loop here together
//   |error of x_ij - c_j| <= that + 2 u |x_ij - c_j| + r (|x_ij - c_j| + that) + half a subnormal
// and a sum of m products adds m u times the sum of their magnitudes; m = 257 where float64 takes
// over after 256 features.
void check_gram_random(GramCall call, double offset, int scale) {
  const int64_t n = call.n, p = call.p;
  const double u = roundoff_of(call.dtype);
  Doubles x(size_t(n * p));
  double largest = 0;
  for (int64_t j = 0; j < p; ++j) {
    const double c = offset * random_normal();
    for (int64_t i = 0; i < n; ++i) {
      // In the type, so that the reference has the same values.
      double value = std::ldexp(c + random_normal(), scale);
      value = call.dtype == Dtype::f64 ? value : rounded(value, info(call.dtype));
      x[size_t(i * p + j)] = value;
      largest = std::max(largest, std::fabs(value));
    }
  }
  call.run(x);

  double operand_roundoff = 0, half_subnormal = 0;
  if (call.dtype != Dtype::f64 && call.operand == Operand::f16) {
    int exponent = 0;
    std::frexp(largest, &exponent);
    operand_roundoff = std::ldexp(1.0, -11);
    half_subnormal = std::ldexp(1.0, exponent - 15 - 25);
  } else if (call.dtype != Dtype::f64 && call.operand == Operand::bf16) {
    operand_roundoff = std::ldexp(1.0, -8);
  }
  const double of_sum =
      (call.dtype == Dtype::f64 ? 0 : 257 * u) + 2 * double(p + 16) * kDoubleRoundoff;
  Doubles a(x.size()), error(x.size());
  double common = 0, common_bound = 0;
  for (int64_t j = 0; j < p; ++j) {
    double sum = 0, distance = 0;
    for (int64_t i = 0; i < n; ++i) {
      sum += x[size_t(i * p + j)] - x[size_t(j)];
      distance += std::fabs(x[size_t(i * p + j)] - x[size_t(j)]);
    }
    const double c = x[size_t(j)] + sum / double(n);
    const double c_error = 4 * u * (std::fabs(c) + distance);
    common += c * c;
    common_bound += 2 * std::fabs(c) * c_error + c_error * c_error;
    for (int64_t i = 0; i < n; ++i) {
      const double value = x[size_t(i * p + j)] - c;
      a[size_t(i * p + j)] = value;
      error[size_t(i * p + j)] = c_error + 2 * u * std::fabs(value) +
                                 operand_roundoff * (std::fabs(value) + c_error) + half_subnormal;
    }
  }
  common_bound += 2 * double(p + 16) * kDoubleRoundoff * common;
  Doubles k, bound;
  double spread = 0, spread_bound = 0;
  for (int64_t i = 0; i < n; ++i)
    for (int64_t l = 0; l <= i; ++l) {
      double sum = 0, direct = 0, magnitudes = 0;
      for (int64_t j = 0; j < p; ++j) {
        const double left = a[size_t(i * p + j)], right = a[size_t(l * p + j)];
        const double left_error = error[size_t(i * p + j)], right_error = error[size_t(l * p + j)];
        sum += left * right;
        direct += std::fabs(left) * right_error + left_error * std::fabs(right) +
                  left_error * right_error;
        magnitudes += (std::fabs(left) + left_error) * (std::fabs(right) + right_error);
      }
      k.push_back(sum);
      bound.push_back(direct + of_sum * magnitudes);
      if (i != l) continue;
      spread += sum;
      spread_bound += bound.back();
    }
  check_near("k", k, call.k, bound);
  check_near("stats", {common, spread + double(n) * common, spread}, call.stats,
             {common_bound, spread_bound + double(n) * common_bound, spread_bound});

  // Neither addresses nor strides nor the run matter.
  GramCall again{call.dtype, call.operand, n, p, call.threads, 5, 1};
  again.run(x);
  check_bits("k elsewhere in memory", call.k, again.k);
  check_bits("stats elsewhere in memory", call.stats, again.stats);
}

void check_gram_precision() {
  for (Dtype dtype : kDtypes)
    for (Operand operand : kOperands)
      for (int threads : kThreads) {
        check_gram_random({dtype, operand, 5, 17, threads}, 0, 0);
        check_gram_random({dtype, operand, 33, 513, threads}, 10, 0);
        check_gram_random({dtype, operand, 16, 4097, threads}, 1, 0);
        if (dtype == Dtype::f16) continue;
        check_gram_random({dtype, operand, 17, 300, threads}, 1, -100);  // 1e-30
        check_gram_random({dtype, operand, 17, 300, threads}, 1 << 18, -75);
        check_gram_random({dtype, operand, 17, 300, threads}, 1, 83);    // 1e25
      }
}

void check_gram_special() {
  for (Dtype dtype : kDtypes)
    for (Operand operand : kOperands)
      for (int64_t p : {1, 17, 300})
        for (int threads : {1, 3}) {
          const int64_t n = 19;
          const size_t pairs = size_t(n * (n + 1) / 2);
          GramCall zeros{dtype, operand, n, p, threads};
          zeros.run(Doubles(size_t(n * p), 0.0));
          check_near("k of zeros", Doubles(pairs, 0.0), zeros.k);
          check_near("stats of zeros", Doubles(3, 0.0), zeros.stats);

          const std::vector<int> scales[] = {{-10, 0, 14}, {-120, 0, 125}, {-140, 0, 125},
                                             {-1060, -600, 0, 600, 1020}};
          for (int scale : scales[int(dtype)]) {
            Doubles row, rows;
            for (int64_t j = 0; j < p; ++j)
              row.push_back(std::ldexp(double(random_int(1 << 20, 1 << 21)), scale - 20));
            for (int64_t i = 0; i < n; ++i) rows.insert(rows.end(), row.begin(), row.end());
            GramCall equal{dtype, operand, n, p, threads, 1, 1};
            equal.run(rows);
            context += ", equal rows of 2^" + std::to_string(scale);
            check_near("k", Doubles(pairs, 0.0), equal.k);
            check_near("spread", {0}, {equal.stats[2]});
          }

          for (double value : {kInf, -kInf, kNaN}) {
            Doubles x(size_t(n * p));
            for (double& entry : x) entry = random_normal();
            x[size_t(random_int(0, n * p - 1))] = value;
            GramCall call{dtype, operand, n, p, threads};
            call.run(x);
            check_none_finite("k", call.k);
            check_none_finite("stats", call.stats);
          }
        }
}

// --- hsic_pairs

// out [rows_a, rows_b]; `b` is empty where a is compared with itself.
Doubles run_hsic(const Doubles& a, const Doubles& b, int64_t length, int threads,
                 int64_t padding = 0, int64_t shift = 0) {
  const bool symmetric = b.empty();
  const int64_t rows_a = int64_t(a.size()) / length;
  const int64_t rows_b = symmetric ? rows_a : int64_t(b.size()) / length;
  context = std::string("hsic_pairs f64") + (symmetric ? " symmetric" : "") +
            ", n=" + std::to_string(rows_a) + " with " + std::to_string(rows_b) +
            ", p=" + std::to_string(length) + ", threads=" + std::to_string(threads) +
            ", padding=" + std::to_string(padding) + ", shift=" + std::to_string(shift);
  Matrix left(rows_a, length, length + padding, shift);
  Matrix right(symmetric ? 0 : rows_b, length, length + 2 * padding);
  Matrix out(rows_a, rows_b, rows_b + padding, shift);
  left.fill(a);
  if (!symmetric) right.fill(b);
  HsicArgs args;
  args.a = left.data();
  args.b = symmetric ? left.data() : right.data();
  args.rows_a = rows_a;
  args.rows_b = rows_b;
  args.length = length;
  args.a_stride = length + padding;
  args.b_stride = symmetric ? args.a_stride : length + 2 * padding;
  args.symmetric = symmetric;
  args.out = out.data();
  args.out_stride = rows_b + padding;
  args.threads = threads;
  kernels->hsic_pairs(args);
  out.check_untouched("out", false);
  return out.values();
}

// Within 2 p u sum |a||b|: the kernel and the loop here round p times each.
void check_hsic_shape(int64_t rows_a, int64_t rows_b, int64_t length) {
  Doubles a(size_t(rows_a * length)), b(size_t(rows_b * length));
  for (double& value : a) value = random_normal();
  for (double& value : b) value = random_normal();
  Doubles both = a;
  both.insert(both.end(), b.begin(), b.end());
  Doubles expected, bound;
  for (int64_t i = 0; i < rows_a; ++i)
    for (int64_t j = 0; j < rows_b; ++j) {
      double sum = 0, magnitudes = 0;
      for (int64_t k = 0; k < length; ++k) {
        const double product = a[size_t(i * length + k)] * b[size_t(j * length + k)];
        sum += product;
        magnitudes += std::fabs(product);
      }
      expected.push_back(sum);
      bound.push_back(2 * double(length) * kDoubleRoundoff * magnitudes);
    }
  // Every pair for itself, all pairs, and all rows with all rows: the same bits.
  Doubles alone;
  for (int64_t i = 0; i < rows_a; ++i)
    for (int64_t j = 0; j < rows_b; ++j) {
      const Doubles left(a.begin() + i * length, a.begin() + (i + 1) * length);
      const Doubles right(b.begin() + j * length, b.begin() + (j + 1) * length);
      alone.push_back(run_hsic(left, right, length, 1)[0]);
    }
  check_near("out of single pairs", expected, alone, bound);
  for (int threads : kThreads) {
    check_bits("out", alone, run_hsic(a, b, length, threads, threads % 3, threads % 2));
    const Doubles rectangular = run_hsic(both, both, length, threads);
    const Doubles symmetric = run_hsic(both, {}, length, threads, threads % 2, threads % 3);
    check_bits("symmetric out", rectangular, symmetric);
    Doubles corner;
    for (int64_t i = 0; i < rows_a; ++i)
      for (int64_t j = 0; j < rows_b; ++j)
        corner.push_back(symmetric[size_t(i * (rows_a + rows_b) + rows_a + j)]);
    check_bits("out among more rows", alone, corner);
  }
}

void check_hsic() {
  const int64_t lengths[] = {1,  2,  3,  4,  5,  6,  7,  8,   9,    15,   16,   17,
                             31, 33, 64, 85, 99, 100, 255, 4095, 4096, 4097, 8205};
  for (int64_t length : lengths) {
    check_hsic_shape(5, 7, length);
    check_hsic_shape(1, 4, length);
  }
  for (int64_t rows : {1, 2, 3, 4, 5, 7, 8, 9, 13, 16, 17}) {
    check_hsic_shape(rows, 3, 21);
    check_hsic_shape(2, rows, 13);
  }
  // No more than a row and a column of its own.
  for (double value : {kInf, kNaN}) {
    Doubles a(9 * 30);
    for (double& entry : a) entry = 1;
    a[4 * 30 + 29] = value;
    Doubles expected(81, 30);
    for (size_t i = 0; i < 9; ++i) expected[4 * 9 + i] = expected[i * 9 + 4] = value;
    check_near("out", expected, run_hsic(a, {}, 30, 2));
  }
}

// --- finish

struct FinishCall {
  int64_t n;
  bool biased;
  int64_t padding = 0, shift = 0;
  Doubles packed = {}, diagonal = {}, row_sums = {}, summary = {};

  // k: [n, n]; what lies above its diagonal is hidden from the kernel.
  FinishCall& run(const Doubles& k, const Doubles& stats) {
    const int64_t length = biased ? n * (n + 1) / 2 : n * (n - 1) / 2;
    context = std::string("finish f64 ") + (biased ? "biased" : "unbiased") +
              ", n=" + std::to_string(n) + ", p=" + std::to_string(length) +
              ", threads=1, padding=" + std::to_string(padding) +
              ", shift=" + std::to_string(shift);
    Matrix in(n, n, n + padding, shift);
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j <= i; ++j) in.at(i, j) = k[size_t(i * n + j)];
    Array in_stats(3), arrays[] = {{length, shift}, {n, shift}, {n, shift}, {5, shift}};
    std::copy(stats.begin(), stats.end(), in_stats.data());
    FinishArgs args;
    args.k = in.data();
    args.n = n;
    args.k_stride = n + padding;
    args.stats = in_stats.data();
    args.estimator = biased ? Estimator::biased : Estimator::unbiased;
    args.packed = arrays[0].data();
    args.diagonal = arrays[1].data();
    args.row_sums = arrays[2].data();
    args.summary = arrays[3].data();
    kernels->finish(args);
    in.check_untouched("k", true);
    for (const Array& array : arrays)
      check(array.front_untouched(), "an output was written before its start, expected nan there");
    packed = arrays[0].values();
    diagonal = arrays[1].values();
    row_sums = arrays[2].values();
    summary = arrays[3].values();
    return *this;
  }
};

// Row sums and total round n and 2 n times, and are weighted by at most 2/n and 16/6/n^2: with the
// loop here that stays below 32 n u max|k| an entry.
void check_finish_shape(int64_t n, bool biased, double scale) {
  Doubles k(size_t(n * n));
  double largest = 0;
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j <= i; ++j) {
      k[size_t(i * n + j)] = k[size_t(j * n + i)] = double(random_int(-999, 999)) * scale;
      largest = std::max(largest, std::fabs(k[size_t(i * n + j)]));
    }
  const Doubles stats = {3 * scale, 5 * scale, 2 * scale};
  FinishCall call{n, biased, n % 3, n % 2};
  call.run(k, stats);

  const double size = double(n);
  Doubles sums(size_t(n), 0.0), hollow_sums(size_t(n), 0.0), diagonal;
  double total = 0, off_diagonal = 0, squares = 0;
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      const double value = k[size_t(i * n + j)];
      sums[size_t(i)] += biased || i != j ? value : 0;
      hollow_sums[size_t(i)] += i != j ? value : 0;
      off_diagonal += i != j ? value * value : 0;
    }
    total += sums[size_t(i)];
    diagonal.push_back(k[size_t(i * n + i)]);
    squares += diagonal.back() * diagonal.back();
  }
  Doubles packed;
  double centred = 0;
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < i + (biased ? 1 : 0); ++j) {
      const double both = sums[size_t(i)] + sums[size_t(j)], value = k[size_t(i * n + j)];
      const double entry = biased ? value - both / size + total / size / size
                                  : value - both / (size - 2) + total / (size - 1) / (size - 2);
      packed.push_back(i == j ? entry : std::sqrt(2.0) * entry);
      centred += packed.back() * packed.back();
    }
  const double bound = 32 * size * kDoubleRoundoff * largest;
  check_near("packed", packed, call.packed, Doubles(packed.size(), bound));
  // Whole numbers times a power of two: sums and squares are exact.
  check_near("diagonal", diagonal, call.diagonal);
  check_near("row_sums", hollow_sums, call.row_sums);
  const double raw = off_diagonal + squares + size * size * stats[0] * stats[0];
  const double length = double(packed.size());
  const double centred_bound = 2 * bound * std::sqrt(length * centred) + length * bound * bound +
                               2 * length * kDoubleRoundoff * centred;
  check_near("summary", {centred, off_diagonal, stats[2], stats[1]}, call.summary,
             {centred_bound, 0, 0, 0});
  const double conditioning =
      std::sqrt(raw / (size * size) / (call.summary[0] / (size * (size - 1))));
  check_near("conditioning", {conditioning}, {call.summary[4]},
             {16 * kDoubleRoundoff * conditioning});

}

// A layer's product with itself has the same bits in `finish` and in `hsic_pairs`. A sum in another
// order or with other roundings is often the same by chance: several times each.
void check_finish_diagonal(int64_t n, bool biased) {
  for (int64_t repeat = 0; repeat < (n < 20 ? 20 : 2); ++repeat) {
    Doubles k(size_t(n * n));
    for (double& value : k) value = random_normal();
    FinishCall call{n, biased, 0, repeat % 2};
    call.run(k, {1, 1, 1});
    const std::string message = context;
    const int64_t length = int64_t(call.packed.size()), copies = 7;
    Doubles rows;
    for (int64_t i = 0; i < copies; ++i)
      rows.insert(rows.end(), call.packed.begin(), call.packed.end());
    const Doubles alone = run_hsic(call.packed, {}, length, 1, 0, repeat % 3);
    const Doubles among = run_hsic(rows, {}, length, 3, repeat % 2);
    context = message;
    check_bits("hsic_pairs alone", {call.summary[0]}, alone);
    check_bits("hsic_pairs among others", Doubles(size_t(copies * copies), call.summary[0]), among);
  }
}

void check_finish() {
  for (bool biased : {false, true})
    for (int64_t n : {2, 3, 4, 5, 6, 7, 8, 9, 10, 15, 16, 17, 31, 33, 64, 91, 92, 100, 131}) {
      if (n < (biased ? 2 : 4)) continue;
      for (int exponent : {-200, 0, 200}) check_finish_shape(n, biased, std::ldexp(1.0, exponent));
      check_finish_diagonal(n, biased);
      const size_t size = size_t(n * n);
      FinishCall zeros{n, biased};
      zeros.run(Doubles(size, 0.0), {0, 0, 0});
      check_near("packed of zeros", Doubles(zeros.packed.size(), 0.0), zeros.packed);
      check_near("|centred|^2 of zeros", {0}, {zeros.summary[0]});
      if (n < 4) continue;
      for (double value : {kInf, kNaN}) {
        Doubles k(size, 1.0);
        k[size_t(2 * n + 1)] = value;
        FinishCall call{n, biased};
        call.run(k, {1, 1, 1});
        check_none_finite("packed", call.packed);
        check_near("|centred|^2", {kNaN}, {call.summary[0]});
      }
    }
}

// --- gram_finish

// gram and then finish, to the bit, whoever has added up which layer.
void check_gram_finish_layers(const std::vector<int64_t>& widths, int64_t n, bool biased,
                              int threads) {
  std::vector<Doubles> values;
  std::vector<std::unique_ptr<char[]>> blocks;
  std::vector<GramInput> layers;
  for (size_t i = 0; i < widths.size(); ++i) {
    const Dtype dtype = kDtypes[i % 4];
    const int64_t p = widths[i], stride = p + int64_t(i % 3);
    const size_t size = info(dtype).size;
    values.emplace_back(size_t(n * p));
    for (double& value : values.back()) value = rounded(random_normal() + 1, info(dtype));
    blocks.emplace_back(new char[size_t((n - 1) * stride + p) * size]);
    for (int64_t k = 0; k < (n - 1) * stride + p; ++k)
      store(dtype, kNaN, blocks.back().get() + size_t(k) * size);
    for (int64_t r = 0; r < n; ++r)
      for (int64_t k = 0; k < p; ++k)
        store(dtype, values.back()[size_t(r * p + k)],
              blocks.back().get() + size_t(r * stride + k) * size);
    GramInput layer{};
    layer.x = blocks.back().get();
    layer.n = n;
    layer.p = p;
    layer.row_stride = stride;
    layer.dtype = dtype;
    layer.operand = Operand::as_accumulated;
    layers.push_back(layer);
  }
  const int64_t count = int64_t(layers.size());
  const int64_t length = biased ? n * (n + 1) / 2 : n * (n - 1) / 2;
  Matrix packed(count, length, length + 1, 1), diagonal(count, n, n + 2, 1);
  Matrix row_sums(count, n, n), summary(count, 5, 6);
  std::vector<Finished> out;
  for (int64_t i = 0; i < count; ++i)
    out.push_back({&packed.at(i, 0), &diagonal.at(i, 0), &row_sums.at(i, 0), &summary.at(i, 0)});
  const size_t bytes = kernels->gram_finish_workspace(layers.data(), count, threads);
  std::unique_ptr<void, void (*)(void*)> workspace(std::aligned_alloc(64, bytes), std::free);
  std::memset(workspace.get(), 0xff, bytes);
  GramFinishArgs args;
  args.layers = layers.data();
  args.out = out.data();
  args.count = count;
  args.estimator = biased ? Estimator::biased : Estimator::unbiased;
  args.workspace = workspace.get();
  args.threads = threads;
  kernels->gram_finish(args);

  int64_t narrow = 0;
  for (int64_t p : widths) narrow += p < 4096;
  const bool dealt = narrow >= threads && threads > 1;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t p = widths[size_t(i)];
    GramCall gram{layers[size_t(i)].dtype, Operand::as_accumulated, n, p,
                  dealt && p < 4096 ? 1 : threads};
    gram.run(values[size_t(i)]);
    Doubles k(size_t(n * n));
    for (int64_t r = 0, at = 0; r < n; ++r)
      for (int64_t c = 0; c <= r; ++c) k[size_t(r * n + c)] = gram.k[size_t(at++)];
    FinishCall finish{n, biased};
    finish.run(k, gram.stats);
    context = "gram_finish, layer " + std::to_string(i) + " of " + std::to_string(count) +
              ", n=" + std::to_string(n) + ", p=" + std::to_string(p) +
              ", threads=" + std::to_string(threads) + (biased ? ", biased" : ", unbiased");
    const auto row = [&](Matrix& matrix, int64_t columns) {
      return Doubles(&matrix.at(i, 0), &matrix.at(i, 0) + columns);
    };
    check_bits("packed", finish.packed, row(packed, length));
    check_bits("diagonal", finish.diagonal, row(diagonal, n));
    check_bits("row_sums", finish.row_sums, row(row_sums, n));
    // Compilers fuse the one product of the fourth, or do not.
    Doubles bound(5, 0.0);
    bound[3] = 2 * kDoubleRoundoff * finish.summary[3];
    check_near("summary", finish.summary, row(summary, 5), bound);
  }
  packed.check_untouched("packed", false);
  diagonal.check_untouched("diagonal", false);
  row_sums.check_untouched("row_sums", false);
  summary.check_untouched("summary", false);
}

void check_gram_finish() {
  for (bool biased : {false, true})
    for (int threads : kThreads) {
      check_gram_finish_layers({300}, 5, biased, threads);
      check_gram_finish_layers({1, 700, 17, 2000, 5000}, 33, biased, threads);
      check_gram_finish_layers({4095, 4096, 4097, 3}, 18, biased, threads);
      check_gram_finish_layers({600}, 130, biased, threads);
    }
}

}  // namespace

int main() {
  try {
    kernels = &cpu_kernels();
  } catch (const std::exception& error) {
    std::printf("%s\n", error.what());
    return 1;
  }
  std::printf("instruction set %s\n", kernels->isa);
  check_conversions();
  check_gram_shapes();
  check_gram_scales();
  check_gram_rounding();
  check_gram_precision();
  check_gram_special();
  check_hsic();
  check_finish();
  check_gram_finish();
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed ? 1 : 0;
}
