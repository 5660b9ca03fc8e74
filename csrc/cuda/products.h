// The products of a tile: sums over features of x_i x_j, x less the pivot, by tensor cores.
//
// A block of threads works through its segments step by step. A thread copies its pieces of 16 bytes
// to shared memory some steps ahead, where nobody else looks at them; when they have come it takes
// the pivot away, rounds to the operand and leaves the result where all warps read it. There are two
// such places, so one barrier a step is enough: who writes to a place has met everybody after they
// last read it.
#pragma once

#include <type_traits>

#include "launch.h"
#include "scale.h"

namespace fastcka {
namespace cuda {

constexpr int larger(int a, int b) { return a > b ? a : b; }

// T: of the activations. Op: of the operands; float is multiplied as three products of TF32.
// kA, kB: rows of the two blocks; kB = 0 is the first with itself.
template <class T_, class Op_, int kA_, int kB_, int kStages_>
struct Tile {
  using T = T_;
  using Op = Op_;
  static constexpr int kA = kA_, kB = kB_, kStages = kStages_;
  static constexpr int kRows = kA + kB;
  static constexpr int kColumns = kB ? kB : kA;  // of the product
  static constexpr int kThreads = kA * kColumns > 64 * 64 ? 256 : 128;

  // Features of a step: 128 bytes of a row, of activations or of operands.
  static constexpr int kStep = 128 / larger(sizeof(T), sizeof(Op));
  static constexpr int kRowBytes = kStep * int(sizeof(Op));
  static constexpr int kBufferBytes = kRows * kRowBytes;

  // A piece is 16 bytes of a row; the pieces of a thread have their features in common.
  static constexpr int kValues = 16 / int(sizeof(T));
  static constexpr int kPiecesOfRow = kStep / kValues;
  static constexpr int kPieces = kRows * kPiecesOfRow / kThreads;
  static constexpr int kRowsApart = kThreads / kPiecesOfRow;

  // Values of 16 bits that are multiplied as such are centred two an instruction: `largest` begins
  // so that no scale leaves their type.
  static constexpr bool kInPairs = std::is_same<T, Op>::value && sizeof(T) == 2;
  static constexpr int kPivotWords = kInPairs ? kValues / 2 : kValues;  // under a piece

  static constexpr int kSharedBytes = 2 * kBufferBytes + kStages * kPieces * kThreads * 16;

  // A warp's share of the product.
  static constexpr int kWarpRows = kA * kColumns == 128 * 128 ? 64 : 32;
  static constexpr int kWarpColumns = 32;
  static constexpr int kWarpsAside = kColumns / kWarpColumns;

  // Tensor cores cut off what they shift out, so no more than so many sums go into one another.
  static constexpr int kSumsOfStep = kRowBytes / 32 * (sizeof(Op) == 4 ? 3 : 1);
  static constexpr int kSumsOfChunk = 512;  // 8,192 features of 16 bits
  static constexpr int kStepsOfChunk = kSumsOfChunk / kSumsOfStep;

  static_assert(kRows * kPiecesOfRow % kThreads == 0 && kThreads % kPiecesOfRow == 0, "");
  static_assert(kA / kWarpRows * kWarpsAside * 32 == kThreads, "");
};

template <class T>
struct alignas(16) Piece {
  T value[16 / sizeof(T)];
};
template <int kCount>
struct alignas(4 * kCount) Words {
  uint32_t word[kCount];
};

// Where a byte of a row is. Eight rows at one place would share banks: their 16 bytes are exchanged,
// as 128-byte swizzling does it.
template <int kRowBytes>
__device__ inline int swizzled(int row, int byte) {
  constexpr int kPieces = kRowBytes / 16;
  const int piece = (byte / 16) ^ (row / (8 / kPieces) % kPieces);
  return row * kRowBytes + piece * 16 + byte % 16;
}

// What a step reads: one segment of the table.
template <class T>
struct Rows {
  const T* a;
  const T* b;
  int64_t stride, features;
  int last_a, last_b;  // rows from there on are read as it: their products are never looked at

  // Where a row of the tile begins.
  template <int kA>
  __device__ const T* at(int row) const {
    const bool second = row >= kA;
    const int own = second ? row - kA : row, last = second ? last_b : last_a;
    return (second ? b : a) + int64_t(own < last ? own : last) * stride;
  }
};

template <class Tile>
__device__ inline void fetch(const Rows<typename Tile::T>& rows, int64_t step, bool aligned,
                             Piece<typename Tile::T>* own) {
  const int64_t feature =
      step * Tile::kStep + int(threadIdx.x) % Tile::kPiecesOfRow * Tile::kValues;
  const auto from = [&](int i) {
    const int row = int(threadIdx.x) / Tile::kPiecesOfRow + i * Tile::kRowsApart;
    return rows.template at<Tile::kA>(row);
  };
  if (aligned) {  // whole pieces exist, or none of it
    const bool exists = feature < rows.features;
#pragma unroll
    for (int i = 0; i < Tile::kPieces; ++i)
      copy_16(own + i * Tile::kThreads, from(i) + (exists ? feature : 0), exists);
    return;
  }
  Piece<typename Tile::T> pieces[Tile::kPieces] = {};  // all on their way before one is stored
#pragma unroll
  for (int i = 0; i < Tile::kPieces; ++i)
#pragma unroll
    for (int j = 0; j < Tile::kValues; ++j)
      if (feature + j < rows.features) pieces[i].value[j] = from(i)[feature + j];
#pragma unroll
  for (int i = 0; i < Tile::kPieces; ++i) own[i * Tile::kThreads] = pieces[i];
}

// The pivot under the pieces of this thread.
template <class Tile>
struct Pivot {
  Piece<float> four[Tile::kValues / 4];

  // Nothing waits for it here.
  __device__ void read(const float* pivots, int64_t step) {
    const float* from =
        pivots + step * Tile::kStep + int(threadIdx.x) % Tile::kPiecesOfRow * Tile::kValues;
#pragma unroll
    for (int j = 0; j < Tile::kValues / 4; ++j)
      four[j] = reinterpret_cast<const Piece<float>*>(from)[j];
  }

  // Scaled, and negative. In pairs it is rounded as values are: any common row may be taken away,
  // and near values of one type differ by one of it, exactly.
  __device__ void negative(uint32_t (&minus)[Tile::kPivotWords], float scale) const {
#pragma unroll
    for (int j = 0; j < Tile::kValues; j += 2) {
      const float one = -four[j / 4].value[j % 4], other = -four[j / 4].value[j % 4 + 1];
      if constexpr (Tile::kInPairs) {
        const typename Tile::Op op{};
        minus[j / 2] = multiply_add(op, pack(op, one, other), pack(op, scale, scale), 0);
      } else {
        minus[j] = __float_as_uint(scale * one);
        minus[j + 1] = __float_as_uint(scale * other);
      }
    }
  }
};

// A word of operands, of the values of a piece less the pivot.
template <class Tile>
__device__ inline uint32_t centred_word(const Piece<typename Tile::T>& piece,
                                        const uint32_t (&minus)[Tile::kPivotWords], float scale,
                                        int word) {
  using Op = typename Tile::Op;
  const auto centred = [&](int i) {
    return fmaf(to_float(piece.value[i]), scale, __uint_as_float(minus[i]));
  };
  if constexpr (Tile::kInPairs) {
    const auto* two = piece.value + 2 * word;
    return multiply_add(Op{}, two[0].bits | uint32_t(two[1].bits) << 16, pack(Op{}, scale, scale),
                        minus[word]);
  } else if constexpr (sizeof(Op) == 2) {
    return pack(Op{}, centred(2 * word), centred(2 * word + 1));
  } else {
    return __float_as_uint(centred(word));
  }
}

template <class Tile>
__device__ inline void centre(const Piece<typename Tile::T>* own,
                              const uint32_t (&minus)[Tile::kPivotWords], float scale,
                              char* buffer) {
  using Op = typename Tile::Op;
  constexpr int kWords = Tile::kValues * int(sizeof(Op)) / 4, kTogether = kWords < 4 ? kWords : 4;
  const int byte =
      int(threadIdx.x) % Tile::kPiecesOfRow * Tile::kValues * int(sizeof(Op));
#pragma unroll
  for (int i = 0; i < Tile::kPieces; ++i) {
    const int row = int(threadIdx.x) / Tile::kPiecesOfRow + i * Tile::kRowsApart;
    const Piece<typename Tile::T> piece = own[i * Tile::kThreads];
#pragma unroll
    for (int w = 0; w < kWords; w += kTogether) {
      Words<kTogether> words;
#pragma unroll
      for (int j = 0; j < kTogether; ++j)
        words.word[j] = centred_word<Tile>(piece, minus, scale, w + j);
      *reinterpret_cast<Words<kTogether>*>(
          buffer + swizzled<Tile::kRowBytes>(row, byte + 4 * w)) = words;
    }
  }
}

// A value to TF32's precision, and what of it TF32 does not hold.
__device__ inline void split(uint32_t word, uint32_t& high, uint32_t& low) {
  high = to_tf32(__uint_as_float(word)) & 0xffffe000u;  // what lies below may be anything
  low = to_tf32(__uint_as_float(word) - __uint_as_float(high));
}

// Added by the memory where something is there: nobody else adds to it, and reading it takes
// registers that there are not.
__device__ inline void keep_two(float* to, const float* sums, bool again) {
  if (again) {
    atomicAdd(to, sums[0]);
    atomicAdd(to + 1, sums[1]);
  } else {
    to[0] = sums[0];
    to[1] = sums[1];
  }
}

template <class Op, int kM, int kN>
__device__ inline void multiply_all(Op, float (&sums)[kM][kN][4], const uint32_t (&a)[kM][4],
                                    const uint32_t (&b)[kN][2]) {
#pragma unroll
  for (int m = 0; m < kM; ++m)
#pragma unroll
    for (int n = 0; n < kN; ++n) multiply(Op{}, sums[m][n], a[m], b[n]);
}
// float32: the product of what TF32 leaves of both is below float32's last bit.
template <int kM, int kN>
__device__ inline void multiply_all(float, float (&sums)[kM][kN][4], const uint32_t (&a)[kM][4],
                                    const uint32_t (&b)[kN][2]) {
  uint32_t high_b[kN][2], low_b[kN][2];
#pragma unroll
  for (int n = 0; n < kN; ++n)
#pragma unroll
    for (int i = 0; i < 2; ++i) split(b[n][i], high_b[n][i], low_b[n][i]);
#pragma unroll
  for (int m = 0; m < kM; ++m) {
    uint32_t high_a[4], low_a[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) split(a[m][i], high_a[i], low_a[i]);
#pragma unroll
    for (int n = 0; n < kN; ++n) {
      multiply(0.0f, sums[m][n], low_a, high_b[n]);
      multiply(0.0f, sums[m][n], high_a, low_b[n]);
      multiply(0.0f, sums[m][n], high_a, high_b[n]);
    }
  }
}

// A warp's share of the products, by mma.sync.
template <class Tile>
struct WarpSums {
  static constexpr int kM = Tile::kWarpRows / 16, kN = Tile::kWarpColumns / 8;
  static constexpr bool kWholePieces = false;
  float sums[kM][kN][4];

  __device__ void clear() {
#pragma unroll
    for (int m = 0; m < kM; ++m)
#pragma unroll
      for (int n = 0; n < kN; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[m][n][i] = 0;
  }
  __device__ void written() {}
  __device__ void before_barrier() {}

  // Of the features in a buffer.
  __device__ void add(const char* buffer) {
    const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
    const int row = warp / Tile::kWarpsAside * Tile::kWarpRows;
    const int column = warp % Tile::kWarpsAside * Tile::kWarpColumns + (Tile::kB ? Tile::kA : 0);
#pragma unroll
    for (int byte = 0; byte < Tile::kRowBytes; byte += 32) {
      uint32_t a[kM][4], b[kN][2];
#pragma unroll
      for (int m = 0; m < kM; ++m)
        load_matrices(a[m], buffer + swizzled<Tile::kRowBytes>(row + 16 * m + lane % 16,
                                                               byte + lane / 16 * 16));
#pragma unroll
      for (int n = 0; n < kN; n += 2) {
        uint32_t two[4];
        load_matrices(two, buffer + swizzled<Tile::kRowBytes>(
                                        column + 8 * n + lane / 16 * 8 + lane % 8,
                                        byte + lane / 8 % 2 * 16));
        b[n][0] = two[0], b[n][1] = two[1], b[n + 1][0] = two[2], b[n + 1][1] = two[3];
      }
      multiply_all(typename Tile::Op{}, sums, a, b);
    }
  }

  // Into the segment's slot, or onto what it holds of the chunks before.
  __device__ void keep(float* slot, bool again) {
    const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
    const int row = warp / Tile::kWarpsAside * Tile::kWarpRows + lane / 4;
    const int column = warp % Tile::kWarpsAside * Tile::kWarpColumns + lane % 4 * 2;
#pragma unroll
    for (int m = 0; m < kM; ++m)
#pragma unroll
      for (int n = 0; n < kN; ++n)
#pragma unroll
        for (int half = 0; half < 2; ++half)
          keep_two(slot + (row + 16 * m + 8 * half) * Tile::kColumns + column + 8 * n,
                   sums[m][n] + 2 * half, again);
  }
};

// All segments of a block of threads; `Sums` multiplies what lies in a buffer.
template <class Tile, class Sums>
__device__ inline void add_segments(const ProductsArgs& args, int products) {
  using T = typename Tile::T;
  char* const buffers = dynamic_shared();
  Piece<T>* const own =
      reinterpret_cast<Piece<T>*>(buffers + 2 * Tile::kBufferBytes) + threadIdx.x;
  const auto stage = [own](int turn) {
    return own + turn % Tile::kStages * (Tile::kPieces * Tile::kThreads);
  };
  int turn = 0;  // steps so far, of all segments
  Sums sums;

  const int64_t end = args.begins[blockIdx.x + 1];
  for (int64_t s = args.begins[blockIdx.x]; s < end; ++s) {
    const Segment segment = args.segments[s];
    const T* x = static_cast<const T*>(args.base) + segment.distance * args.piece;
    Rows<T> rows;
    rows.stride = segment.stride * args.piece;
    rows.features = segment.features * args.piece;
    rows.a = x + segment.row_a * rows.stride;
    rows.b = x + segment.row_b * rows.stride;
    rows.last_a = int(args.n - 1 - segment.row_a);
    rows.last_b = int(args.n - 1 - segment.row_b);
    const float* pivots = args.pivots + segment.pivot * 16;
    const float scale = scale_of(args.largest[segment.layer]);
    const bool aligned = Sums::kWholePieces || args.piece > 1;
    float* slot = args.partials + s * products;

#pragma unroll 1
    for (int i = 0; i < Tile::kStages - 1; ++i) {
      if (segment.start + i < segment.stop)
        fetch<Tile>(rows, segment.start + i, aligned, stage(turn + i));
      commit_copies();
    }
    Pivot<Tile> pivot;
    pivot.read(pivots, segment.start);
    uint32_t minus[Tile::kPivotWords];
    pivot.negative(minus, scale);
    for (int64_t chunk = segment.start; chunk < segment.stop; chunk += Tile::kStepsOfChunk) {
      sums.clear();
      const int64_t stop =
          chunk + Tile::kStepsOfChunk < segment.stop ? chunk + Tile::kStepsOfChunk : segment.stop;
      for (int64_t step = chunk; step < stop; ++step, ++turn) {
        char* buffer = buffers + turn % 2 * Tile::kBufferBytes;
        wait_for_copies<Tile::kStages - 2>();
        centre<Tile>(stage(turn), minus, scale, buffer);
        sums.written();
        if (step + Tile::kStages - 1 < segment.stop)
          fetch<Tile>(rows, step + Tile::kStages - 1, aligned, stage(turn + Tile::kStages - 1));
        commit_copies();
        pivot.read(pivots, step + 1 < segment.stop ? step + 1 : step);
        sums.before_barrier();
        __syncthreads();
        sums.add(buffer);
        pivot.negative(minus, scale);
      }
      sums.keep(slot, chunk > segment.start);
    }
  }
}

template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads, 1) products_kernel(ProductsArgs args) {
  add_segments<Tile, WarpSums<Tile>>(args, Tile::kA * Tile::kColumns);
}

template <class Tile>
void launch_products(void (*kernel)(ProductsArgs), const ProductsArgs& args, void* stream) {
  if (args.step != Tile::kStep)
    throw std::runtime_error("a step of these products has " + std::to_string(Tile::kStep) +
                             " features, not " + std::to_string(args.step));
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             Tile::kSharedBytes),
        "gram");
  launch(kernel, dim3(unsigned(args.programs)), Tile::kThreads, Tile::kSharedBytes, stream, args);
}

template <class Tile>
void launch_products(const ProductsArgs& args, void* stream) {
  static_assert(Tile::kSharedBytes <= 163 << 10, "more than a block may use on sm_80");
  launch_products<Tile>(products_kernel<Tile>, args, stream);
}

template <class T, class Op>
void launch_tile(const ProductsArgs& args, void* stream) {
  const int64_t rows = args.rows, columns = args.columns;
  const bool square = args.kind == TileKind::square, pair = args.kind == TileKind::pair;
  if (square && rows == 64) return launch_products<Tile<T, Op, 64, 0, 4>>(args, stream);
  if (square && rows == 128) return launch_products<Tile<T, Op, 128, 0, 3>>(args, stream);
  if (pair && rows == 128 && columns == 128)
    return launch_products<Tile<T, Op, 128, 128, 3>>(args, stream);
  // For GPUs of 100 kB of shared memory.
  if (pair && rows == 128 && columns == 64)
    return launch_products<Tile<T, Op, 128, 64, 2>>(args, stream);
  throw std::runtime_error("there is no kernel for this tile");
}

template <class Op>
void launch_operand(const ProductsArgs& args, void* stream) {
  switch (args.dtype) {
    case Dtype::f16: return launch_tile<half_bits, Op>(args, stream);
    case Dtype::bf16: return launch_tile<bfloat_bits, Op>(args, stream);
    case Dtype::f32: return launch_tile<float, Op>(args, stream);
    case Dtype::f64: throw std::runtime_error("there are no tensor cores for float64 activations");
  }
}

}  // namespace cuda
}  // namespace fastcka
