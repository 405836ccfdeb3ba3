// SPDX-License-Identifier: Apache-2.0
// A file of weights as tensors: mapped, so that a phone that is short of memory can drop pages.
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/dtype.h>
#include <tvm/ffi/error.h>
#include <unistd.h>

#include <memory>
#include <sstream>
#include <string>
#include <vector>

namespace dynprune {

class Mapping {
 public:
  explicit Mapping(const std::string& path) {
    int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    struct stat status {};
    if (fd >= 0 && fstat(fd, &status) == 0) {
      size_ = static_cast<size_t>(status.st_size);
      data_ = mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, fd, 0);
    }
    if (fd >= 0) close(fd);
    if (data_ == MAP_FAILED) TVM_FFI_THROW(RuntimeError) << path << ": cannot be mapped";
  }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping() {
    if (data_ != MAP_FAILED) munmap(data_, size_);
  }

  char* data() const { return static_cast<char*>(data_); }
  size_t size() const { return size_; }

 private:
  void* data_ = MAP_FAILED;
  size_t size_ = 0;
};

// What tvm::ffi::Tensor::FromNDAlloc takes; keeps the mapping as long as a tensor lies in it.
struct MappedPart {
  std::shared_ptr<Mapping> mapping;
  size_t offset;

  void AllocData(DLTensor* tensor) {
    if (offset + tvm::ffi::GetDataSize(*tensor) > mapping->size()) {
      TVM_FFI_THROW(ValueError) << "a tensor at byte " << offset << " of a file of weights of "
                                << mapping->size();
    }
    tensor->data = mapping->data() + offset;
  }
  void FreeData(DLTensor*) {}
};

// `layout` has a line a tensor: dtype, offset in bytes, shape (runtime/weights.py).
inline tvm::ffi::Array<tvm::ffi::Tensor> MapWeights(const std::string& path,
                                                    const std::string& layout) {
  auto mapping = std::make_shared<Mapping>(path);
  tvm::ffi::Array<tvm::ffi::Tensor> tensors;
  std::istringstream lines(layout);
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::string dtype;
    size_t offset = 0;
    words >> dtype >> offset;
    std::vector<int64_t> shape;
    for (int64_t size; words >> size;) shape.push_back(size);
    tensors.push_back(tvm::ffi::Tensor::FromNDAlloc(MappedPart{mapping, offset},
                                                    tvm::ffi::ShapeView(shape.data(), shape.size()),
                                                    tvm::ffi::StringToDLDataType(dtype),
                                                    DLDevice{kDLCPU, 0}));
  }
  return tensors;
}

}  // namespace dynprune
