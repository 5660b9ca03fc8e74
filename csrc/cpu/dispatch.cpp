// Chooses among the instruction sets that were built, once, at the first call.
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "../kernels.h"

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace fastcka {

namespace base {
extern const CpuKernels kernels;
}
#ifdef FASTCKA_HAS_AVX2
namespace avx2 {
extern const CpuKernels kernels;
}
#endif
#ifdef FASTCKA_HAS_AVX512
namespace avx512 {
extern const CpuKernels kernels;
}
#endif
#ifdef FASTCKA_HAS_AVX512BF16
namespace avx512bf16 {
extern const CpuKernels kernels;
}
#endif
#ifdef FASTCKA_HAS_AMX
namespace amx {
extern const CpuKernels kernels;
}
#endif

namespace {

#ifdef FASTCKA_HAS_AVX2
// __builtin_cpu_supports also asks whether the operating system saves the registers, but not every
// compiler lets it ask for F16C.
bool has_avx2() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  const bool f16c = __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & (1u << 29));
  return f16c && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
#endif
#ifdef FASTCKA_HAS_AVX512
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif
#ifdef FASTCKA_HAS_AVX512BF16
bool has_avx512bf16() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return has_avx512() && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax & (1u << 5));
}
#endif
#ifdef FASTCKA_HAS_AMX
bool has_amx() {
#if defined(FASTCKA_EMULATE_AMX)
  return has_avx512bf16();
#elif defined(__linux__)
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return has_avx512bf16() && __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) &&
         (edx & (1u << 22)) && (edx & (1u << 24));  // bfloat products, tiles
#else
  return false;
#endif
}

// A process must ask for the state of the tiles, 18, before it uses them.
void ask_for_tiles() {
#if defined(__linux__) && !defined(FASTCKA_EMULATE_AMX)
  if (syscall(SYS_arch_prctl, 0x1023, 18) != 0)
    throw std::runtime_error("FASTCKA_ISA asks for amx, which the operating system refuses; unset it");
#endif
}
#endif

const CpuKernels& choose() {
  int count = 0;
  const IsaState* states = cpu_isas(&count);
  const char* wanted = std::getenv("FASTCKA_ISA");
  std::string built;
  for (int i = 0; i < count; ++i) {
    if (!wanted || !*wanted) {
      if (states[i].supported && states[i].automatic) return *states[i].kernels;
      continue;
    }
    if (std::string(wanted) == states[i].kernels->isa) {
#ifdef FASTCKA_HAS_AMX
      if (states[i].supported && states[i].kernels == &amx::kernels) ask_for_tiles();
#endif
      if (states[i].supported) return *states[i].kernels;
      throw std::runtime_error("FASTCKA_ISA asks for " + std::string(wanted) +
                               ", which this processor lacks; unset it to let fastcka choose");
    }
    built += std::string(i ? ", " : "") + states[i].kernels->isa;
  }
  throw std::runtime_error("FASTCKA_ISA must be one of " + built + " or unset, but is " + wanted);
}

}  // namespace

const IsaState* cpu_isas(int* count) {
  static const IsaState states[] = {
#ifdef FASTCKA_HAS_AMX
      // By name only: checked on emulated tiles, not yet on a processor that has them.
      {&amx::kernels, has_amx(), false},
#endif
#ifdef FASTCKA_HAS_AVX512BF16
      {&avx512bf16::kernels, has_avx512bf16(), true},
#endif
#ifdef FASTCKA_HAS_AVX512
      {&avx512::kernels, has_avx512(), true},
#endif
#ifdef FASTCKA_HAS_AVX2
      {&avx2::kernels, has_avx2(), true},
#endif
      {&base::kernels, true, true},
  };
  *count = int(sizeof(states) / sizeof(states[0]));
  return states;
}

const CpuKernels& cpu_kernels() {
  static const CpuKernels& chosen = choose();
  return chosen;
}

}  // namespace fastcka
