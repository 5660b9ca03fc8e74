// A GPU in plain C++, for machines that have none: the kernels are compiled with this before all
// else, and their host entries run them on this processor.
//
// Blocks run one after the other. The threads of a block are fibers, each of which runs until it has
// to meet others: all of the block at a barrier, the warp at an instruction of it. Whose turn it is
// is drawn by lot, so a barrier that is missing shows as a wrong result; who waits for somebody that
// has gone elsewhere, or has left, ends the program. What is copied in the background arrives when
// it is waited for, no sooner, and is NaN until then; products in the background are taken at once
// or then, by lot. Shared memory is a heap block of its size. Fences are not looked at.
#pragma once

#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <vector>

#include "../../csrc/cuda/ptx.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(...)

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
inline dim3 gridDim, blockIdx, blockDim, threadIdx;

using cudaError_t = int;
constexpr cudaError_t cudaSuccess = 0, cudaErrorInvalidValue = 1;
constexpr int cudaFuncAttributeMaxDynamicSharedMemorySize = 0;
inline cudaError_t cudaGetDevice(int* device) { return *device = 0; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "invalid argument"; }
constexpr int cudaDevAttrComputeCapabilityMajor = 0;
inline cudaError_t cudaDeviceGetAttribute(int* value, int, int) {
  *value = 9;
  return cudaSuccess;
}
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, int, int shared) {
  return shared <= 227 << 10 ? cudaSuccess : cudaErrorInvalidValue;
}

namespace cuda_emulation {

[[noreturn]] inline void fail(const char* what) {
  std::printf("FAILED in the emulated GPU: %s\n", what);
  std::fflush(stdout);
  std::abort();
}

struct Copy {
  void* to;
  const void* from;
  bool exists;
};

struct Thread {
  static constexpr size_t kStack = 128 << 10;
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStack]};
  dim3 index;
  const char* met = nullptr;  // what it waits at, and with how many others
  size_t group = 0;
  bool done = false;
  const void* in[3];  // of an instruction of many threads
  void* out;
  std::vector<std::vector<Copy>> copies;  // the last group is still open
  std::vector<std::function<void()>> products;  // that are on their way: of four warps, the first's
  void* fake_stack = nullptr;
};

class Block {
 public:
  void run(size_t threads, int shared, const std::function<void()>& kernel) {
    while (threads_.size() < threads) threads_.emplace_back(new Thread);
    count_ = threads;
    shared_.reset(new (std::align_val_t(1024)) char[size_t(shared)]);
    std::memset(shared_.get(), 0xff, size_t(shared));
    kernel_ = &kernel;
    std::vector<size_t> ready;
    for (size_t i = 0; i < threads; ++i) {
      Thread& thread = *threads_[i];
      thread.index = dim3(unsigned(i));
      thread.met = nullptr;
      thread.done = false;
      thread.copies.assign(1, {});
      thread.products.clear();
      getcontext(&thread.context);
      thread.context.uc_stack.ss_sp = thread.stack.get();
      thread.context.uc_stack.ss_size = Thread::kStack;
      makecontext(&thread.context, reinterpret_cast<void (*)()>(&Block::enter), 0);
      ready.push_back(i);
    }
    size_t finished = 0;
    while (finished < threads) {
      if (ready.empty()) fail("threads wait for each other for ever");
      const size_t at = std::uniform_int_distribution<size_t>(0, ready.size() - 1)(lots_);
      const size_t i = ready[at];
      ready[at] = ready.back();
      ready.pop_back();
      resume(*threads_[i]);
      if (threads_[i]->done) {
        ++finished;
        for (const auto& group : threads_[i]->copies)
          if (!group.empty()) fail("a thread left while a copy was on its way");
        if (!threads_[i]->products.empty()) fail("a thread left while products were on their way");
      } else if (gathered(*threads_[i])) {
        const size_t group = threads_[i]->group, first = i / group * group;
        for (size_t j = first; j < first + group; ++j) {
          threads_[j]->met = nullptr;
          ready.push_back(j);
        }
      }
    }
  }

  // Waits for the other threads of its group, of so many; the last to come does the work of all.
  void meet(const char* what, size_t group, const std::function<void(Thread* const*)>& work) {
    Thread& mine = *current_;
    mine.met = what;
    mine.group = group;
    if (work && gathered(mine)) {
      std::vector<Thread*> members;
      for (size_t j = 0; j < group; ++j)
        members.push_back(threads_[mine.index.x / group * group + j].get());
      work(members.data());
    }
    leave();
  }

  Thread& current() { return *current_; }
  bool toss() { return std::uniform_int_distribution<int>(0, 1)(lots_); }
  char* shared() { return shared_.get(); }

 private:
  struct Aligned {
    void operator()(char* memory) const { ::operator delete[](memory, std::align_val_t(1024)); }
  };

  // Whether all of its group are where it is.
  bool gathered(const Thread& thread) {
    const size_t first = thread.index.x / thread.group * thread.group;
    if (first + thread.group > count_) fail("a warp is not whole");
    for (size_t j = first; j < first + thread.group; ++j) {
      if (threads_[j]->done) fail("a thread has left that others wait for");
      if (!threads_[j]->met || std::strcmp(threads_[j]->met, thread.met) != 0) return false;
    }
    return true;
  }

  void resume(Thread& thread) {
    current_ = &thread;
    threadIdx = thread.index;
#if defined(__SANITIZE_ADDRESS__)
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(&fake, thread.stack.get(), Thread::kStack);
    swapcontext(&own_, &thread.context);
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#else
    swapcontext(&own_, &thread.context);
#endif
  }

  void leave() {
    Thread& thread = *current_;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(thread.done ? nullptr : &thread.fake_stack, own_stack_,
                                   own_size_);
    swapcontext(&thread.context, &own_);
    __sanitizer_finish_switch_fiber(thread.fake_stack, &own_stack_, &own_size_);
#else
    swapcontext(&thread.context, &own_);
#endif
  }

  static void enter();

  std::vector<std::unique_ptr<Thread>> threads_;
  size_t count_ = 0;
  std::unique_ptr<char[], Aligned> shared_;
  const std::function<void()>* kernel_ = nullptr;
  Thread* current_ = nullptr;
  ucontext_t own_;
  const void* own_stack_ = nullptr;
  size_t own_size_ = 0;
  std::mt19937 lots_{1};
};

inline Block& block() {
  static Block only;
  return only;
}

inline void Block::enter() {
  Block& block = cuda_emulation::block();
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &block.own_stack_, &block.own_size_);
#endif
  (*block.kernel_)();
  block.current_->done = true;
  block.leave();
}

// --- Values of 16 bits

inline uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
inline float float_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
inline float half_value(uint16_t bits) {
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  const float sign = bits >> 15 ? -1.0f : 1.0f;
  if (exponent == 31) return mantissa ? NAN : sign * INFINITY;
  return sign * (exponent ? std::ldexp(float(1024 + mantissa), exponent - 25)
                          : std::ldexp(float(mantissa), -24));
}
// To nearest, ties to even.
inline uint16_t half_of(double x) {
  const uint16_t sign = uint16_t(std::signbit(x) ? 0x8000 : 0);
  if (std::isnan(x)) return 0x7fff;
  const double magnitude = std::fabs(x);
  if (magnitude >= 65520) return uint16_t(sign | 0x7c00);
  int exponent = 0;
  std::frexp(magnitude, &exponent);
  const int unit = magnitude < 0x1p-13 ? -24 : exponent - 11;
  const long steps = std::lrint(std::ldexp(magnitude, -unit));
  // Above the subnormals the leading bit is counted by the exponent.
  return uint16_t(sign | (unit == -24 ? steps : steps - 1024 + ((unit + 25) << 10)));
}
inline uint16_t bfloat_of(double x) {
  if (std::isnan(x)) return 0x7fff;
  uint32_t bits = bits_of(float(x));
  if (double(float(x)) != x && std::isfinite(x)) {
    // Cut off, with a last bit that tells so: what float32 rounds must not make a tie.
    if (std::fabs(double(float(x))) > std::fabs(x)) --bits;
    bits |= 1;
  }
  return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

}  // namespace cuda_emulation

inline void __syncthreads() { cuda_emulation::block().meet("a barrier", blockDim.x, nullptr); }
inline void atomicAdd(float* at, float value) { *at += value; }
inline int atomicMax(int* at, int value) {
  const int before = *at;
  if (value > before) *at = value;
  return before;
}
inline float __uint_as_float(uint32_t bits) { return cuda_emulation::float_of(bits); }
inline float __int_as_float(int bits) { return cuda_emulation::float_of(uint32_t(bits)); }
inline uint32_t __float_as_uint(float x) { return cuda_emulation::bits_of(x); }
inline int __float_as_int(float x) { return int(cuda_emulation::bits_of(x)); }

namespace fastcka {
namespace cuda {

template <class Args>
void launch(void (*kernel)(Args), dim3 blocks, int threads, int shared, void*, const Args& args) {
  if (threads > 1024 || blocks.y > 65535 || blocks.z > 65535 || !blocks.x || !blocks.y || !blocks.z)
    cuda_emulation::fail("a launch that a GPU refuses");
  gridDim = blocks;
  blockDim = dim3(unsigned(threads));
  for (blockIdx.z = 0; blockIdx.z < blocks.z; ++blockIdx.z)
    for (blockIdx.y = 0; blockIdx.y < blocks.y; ++blockIdx.y)
      for (blockIdx.x = 0; blockIdx.x < blocks.x; ++blockIdx.x)
        cuda_emulation::block().run(size_t(threads), shared, [&] { kernel(args); });
}

inline float to_float(float x) { return x; }
inline float to_float(half_bits x) { return cuda_emulation::half_value(x.bits); }
inline float to_float(bfloat_bits x) { return cuda_emulation::float_of(uint32_t(x.bits) << 16); }
inline uint32_t pack(half_bits, float low, float high) {
  return cuda_emulation::half_of(low) | uint32_t(cuda_emulation::half_of(high)) << 16;
}
inline uint32_t pack(bfloat_bits, float low, float high) {
  return cuda_emulation::bfloat_of(low) | uint32_t(cuda_emulation::bfloat_of(high)) << 16;
}
// The pairs that are multiplied here lose nothing in float64.
inline uint32_t multiply_add(half_bits, uint32_t a, uint32_t b, uint32_t c) {
  const auto one = [=](int shift) {
    const auto value = [=](uint32_t word) {
      return double(cuda_emulation::half_value(uint16_t(word >> shift)));
    };
    return uint32_t(cuda_emulation::half_of(std::fma(value(a), value(b), value(c)))) << shift;
  };
  return one(0) | one(16);
}
inline uint32_t multiply_add(bfloat_bits, uint32_t a, uint32_t b, uint32_t c) {
  const auto one = [=](int shift) {
    const auto value = [=](uint32_t word) {
      return double(cuda_emulation::float_of(word >> shift << 16));
    };
    return uint32_t(cuda_emulation::bfloat_of(std::fma(value(a), value(b), value(c)))) << shift;
  };
  return one(0) | one(16);
}
// To nearest, ties away from zero; what lies below the 11 bits is left as it comes.
inline uint32_t to_tf32(float x) {
  if (!std::isfinite(x)) return cuda_emulation::bits_of(x);
  return (cuda_emulation::bits_of(x) + 0x1000) | 0x0555;
}

inline char* dynamic_shared() { return cuda_emulation::block().shared(); }

inline void copy_16(void* to, const void* from, bool exists) {
  if (reinterpret_cast<uintptr_t>(to) % 16 || reinterpret_cast<uintptr_t>(from) % 16)
    cuda_emulation::fail("16 bytes are copied that lie at no multiple of it");
  std::memset(to, 0xff, 16);
  cuda_emulation::block().current().copies.back().push_back({to, from, exists});
}
inline void commit_copies() { cuda_emulation::block().current().copies.emplace_back(); }
template <int kGroups>
void wait_for_copies() {
  auto& groups = cuda_emulation::block().current().copies;
  while (groups.size() > size_t(kGroups) + 1) {
    for (const auto& copy : groups.front()) {
      if (copy.exists)
        std::memcpy(copy.to, copy.from, 16);
      else
        std::memset(copy.to, 0, 16);
    }
    groups.erase(groups.begin());
  }
}

inline void load_matrices(uint32_t (&words)[4], const void* row) {
  auto& mine = cuda_emulation::block().current();
  if (reinterpret_cast<uintptr_t>(row) % 16)
    cuda_emulation::fail("a row of a matrix lies at no multiple of 16 bytes");
  mine.in[0] = row;
  mine.out = words;
  cuda_emulation::block().meet("ldmatrix", 32, [](cuda_emulation::Thread* const* lanes) {
    for (int lane = 0; lane < 32; ++lane)
      for (int matrix = 0; matrix < 4; ++matrix)
        std::memcpy(static_cast<uint32_t*>(lanes[lane]->out) + matrix,
                    static_cast<const char*>(lanes[8 * matrix + lane / 4]->in[0]) + lane % 4 * 4,
                    4);
  });
}

// The value k of an operand's row, as a tensor core reads it.
inline double operand_value(half_bits, const uint32_t* words, int k) {
  return cuda_emulation::half_value(uint16_t(words[0] >> 16 * (k % 2)));
}
inline double operand_value(bfloat_bits, const uint32_t* words, int k) {
  return cuda_emulation::float_of(uint32_t(words[0] >> 16 * (k % 2)) << 16);
}
inline double operand_value(float, const uint32_t* words, int) {
  return cuda_emulation::float_of(words[0] & 0xffffe000u);
}

template <class Op>
void multiply(Op, float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  auto& mine = cuda_emulation::block().current();
  mine.in[0] = a;
  mine.in[1] = b;
  mine.out = sums;
  cuda_emulation::block().meet("mma", 32, [](cuda_emulation::Thread* const* lanes) {
    constexpr int kPerWord = 4 / int(sizeof(Op)), kHalf = 4 * kPerWord;  // values of 16 bytes
    double left[16][2 * kHalf], right[8][2 * kHalf];
    for (int k = 0; k < 2 * kHalf; ++k) {
      const int lane = k % kHalf / kPerWord, late = k / kHalf;
      for (int m = 0; m < 16; ++m)
        left[m][k] = operand_value(
            Op{}, static_cast<const uint32_t*>(lanes[m % 8 * 4 + lane]->in[0]) + m / 8 + 2 * late,
            k);
      for (int n = 0; n < 8; ++n)
        right[n][k] = operand_value(
            Op{}, static_cast<const uint32_t*>(lanes[n * 4 + lane]->in[1]) + late, k);
    }
    for (int lane = 0; lane < 32; ++lane)
      for (int i = 0; i < 4; ++i) {
        const int m = lane / 4 + i / 2 * 8, n = lane % 4 * 2 + i % 2;
        double sum = 0;
        for (int k = 0; k < 2 * kHalf; ++k) sum += left[m][k] * right[n][k];
        float& to = static_cast<float*>(lanes[lane]->out)[i];
        to = float(double(to) + sum);
      }
  });
}

inline uint32_t shared_address(const void* place) {
  return uint32_t(static_cast<const char*>(place) - dynamic_shared());
}
inline void show_to_tensor_cores() {}
inline void begin_products() {}
inline void end_products() {}
inline void wait_for_products() {
  cuda_emulation::block().meet("wgmma.wait", 128, [](cuda_emulation::Thread* const* threads) {
    for (const auto& product : threads[0]->products) product();
    threads[0]->products.clear();
  });
}

// A value of a matrix that a descriptor of wgmma tells of: rows of 128 bytes in groups of eight.
template <class Op>
double described(Op, uint64_t matrix, int row, int k) {
  if (matrix >> 62 != 1) cuda_emulation::fail("a matrix that is not swizzled by 128 bytes");
  const uint64_t start = (matrix & 0x3fff) * 16, eight_rows = (matrix >> 32 & 0x3fff) * 16;
  uint64_t place = start + uint64_t(row / 8) * eight_rows + uint64_t(row % 8 * 128 + 2 * k);
  place ^= (place >> 7 & 7) << 4;  // by the address, whatever the matrix
  Op value;
  std::memcpy(&value, dynamic_shared() + place, 2);
  return double(to_float(value));
}

template <class Op, int kCount>
void multiply_group(Op, float (&sums)[kCount], uint64_t a, uint64_t b) {
  auto& mine = cuda_emulation::block().current();
  mine.in[0] = &a;
  mine.in[1] = &b;
  mine.out = sums;
  cuda_emulation::block().meet("wgmma", 128, [](cuda_emulation::Thread* const* threads) {
    const uint64_t left = *static_cast<const uint64_t*>(threads[0]->in[0]);
    const uint64_t right = *static_cast<const uint64_t*>(threads[0]->in[1]);
    std::vector<float*> sums_of;
    for (int i = 0; i < 128; ++i) {
      if (*static_cast<const uint64_t*>(threads[i]->in[0]) != left ||
          *static_cast<const uint64_t*>(threads[i]->in[1]) != right)
        cuda_emulation::fail("threads of a group name different matrices");
      sums_of.push_back(static_cast<float*>(threads[i]->out));
    }
    const auto multiply = [=] {
      double x[64][16], y[2 * kCount][16];
      for (int k = 0; k < 16; ++k) {
        for (int m = 0; m < 64; ++m) x[m][k] = described(Op{}, left, m, k);
        for (int n = 0; n < 2 * kCount; ++n) y[n][k] = described(Op{}, right, n, k);
      }
      for (int thread = 0; thread < 128; ++thread)
        for (int i = 0; i < kCount; ++i) {
          const int m = thread / 32 * 16 + i / 2 % 2 * 8 + thread % 32 / 4;
          const int n = i / 4 * 8 + thread % 4 * 2 + i % 2;
          double sum = 0;
          for (int k = 0; k < 16; ++k) sum += x[m][k] * y[n][k];
          sums_of[size_t(thread)][i] = float(double(sums_of[size_t(thread)][i]) + sum);
        }
    };
    auto& waiting = threads[0]->products;
    if (!waiting.empty() || cuda_emulation::block().toss())
      waiting.push_back(multiply);
    else
      multiply();
  });
}

}  // namespace cuda
}  // namespace fastcka
