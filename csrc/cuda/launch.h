// What the host entries share: errors as exceptions, the device of the tensors, launches.
#pragma once

#include <stdexcept>
#include <string>

#include "../kernels.h"
#include "ptx.h"

namespace fastcka {
namespace cuda {

inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess)
    throw std::runtime_error(std::string(what) + " on the GPU failed: " +
                             cudaGetErrorString(status));
}

// Makes a device current while it lives.
class DeviceGuard {
 public:
  DeviceGuard(int device, const char* what) : device_(device) {
    check(cudaGetDevice(&previous_), what);
    if (previous_ != device_) check(cudaSetDevice(device_), what);
    cudaGetLastError();  // an older error of somebody else is not ours to report
  }
  ~DeviceGuard() {  // not for nothing: it would make a context there
    if (previous_ != device_) cudaSetDevice(previous_);
  }
  DeviceGuard(const DeviceGuard&) = delete;

 private:
  int device_, previous_ = 0;
};

#ifndef FASTCKA_EMULATE_CUDA
template <class Args>
void launch(void (*kernel)(Args), dim3 blocks, int threads, int shared, void* stream,
            const Args& args) {
  kernel<<<blocks, threads, shared, static_cast<cudaStream_t>(stream)>>>(args);
}
#endif

}  // namespace cuda
}  // namespace fastcka
