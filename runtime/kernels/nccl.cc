// Sums over the ranks of several GPUs, by NCCL. This project never ran them.
#include <dlfcn.h>

#include "collective.h"

namespace plc::kernels {
namespace {

// NCCL, and the communicator that the process was given. Found by name: building asks for no CUDA.
class Nccl {
 public:
  size_t ranks = 0;

  const char* use(void* communicator) {
    void* library = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
    if (!library) return "libnccl.so.2 does not load";
    const auto count = reinterpret_cast<int (*)(void*, int*)>(dlsym(library, "ncclCommCount"));
    all_reduce_ = reinterpret_cast<AllReduce>(dlsym(library, "ncclAllReduce"));
    int found = 0;
    if (!count || !all_reduce_ || count(communicator, &found)) return "NCCL does not take the communicator";
    communicator_ = communicator;
    ranks = size_t(found);
    return nullptr;
  }

  void all_reduce(const void* x, void* y, size_t size, int type, void* stream) const {
    constexpr int kSum = 0;
    expect(all_reduce_(x, y, size, type, kSum, communicator_, stream) == 0, "NCCL failed");
  }

 private:
  using AllReduce = int (*)(const void*, void*, size_t, int, int, void*, void*);

  AllReduce all_reduce_ = nullptr;
  void* communicator_ = nullptr;
};

Nccl nccl;

template <ort::ElementType type, int nccl_type>
struct CudaCollective {
  static constexpr const char* kName = "DistCollective";
  static constexpr const char* kProvider = "CUDAExecutionProvider";
  static constexpr ort::ElementType kInputs[] = {type};
  static constexpr ort::ElementType kOutputs[] = {type};
  static constexpr size_t kNeeded = 1;

  explicit CudaCollective(const ort::KernelInfo* info) { check_sum(info, nccl.ranks); }

  void compute(ort::KernelContext* context) const {
    const Tensor x = input(context, 0);
    void* stream = nullptr;
    using Get = ort::Status* (*)(const ort::KernelContext*, void**);
    check(slot<Get>(ort::kStream)(context, &stream));
    nccl.all_reduce(x.data, output(context, 0, x.shape), x.size(), nccl_type, stream);
  }
};

}  // namespace

std::vector<const ort::CustomOp*> nccl_ops() {
  constexpr int kNcclHalf = 6, kNcclFloat = 7;
  static Definition<CudaCollective<ort::kFloat, kNcclFloat>> on_cuda;
  static Definition<CudaCollective<ort::kFloat16, kNcclHalf>> on_cuda_half;
  return {&on_cuda, &on_cuda_half};
}

}  // namespace plc::kernels

// Gives this process an ncclComm_t; null, or a message.
PLC_EXPORT const char* plc_use_communicator(void* communicator) { return plc::kernels::nccl.use(communicator); }
