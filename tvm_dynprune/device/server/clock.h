// SPDX-License-Identifier: Apache-2.0
// What time is: nanoseconds, or with --clock the instructions that an emulator's counter
// (instruction_counter.c) has written into a file that is mapped here. TVM's own time_evaluator
// reads the same clock.
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/reflection/registry.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>

// As in tvm/runtime/timer.h, which includes a header that TVM's package lacks.
namespace tvm::runtime {
class TimerNode : public ffi::Object {
 public:
  virtual void Start() = 0;
  virtual void Stop() = 0;
  virtual int64_t SyncAndGetElapsedNanos() = 0;
  virtual ~TimerNode() = default;
  static constexpr bool _type_mutable = true;
  TVM_FFI_DECLARE_OBJECT_INFO("runtime.TimerNode", TimerNode, ffi::Object);
};
}  // namespace tvm::runtime

namespace dynprune {

inline volatile const uint64_t* counted_instructions = nullptr;

inline int64_t Now() {
  if (counted_instructions) return static_cast<int64_t>(*counted_instructions);
  auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::nanoseconds>(now).count();
}

class InstructionTimerNode : public tvm::runtime::TimerNode {
 public:
  void Start() final { count_ = Now(); }
  void Stop() final { count_ = Now() - count_; }
  int64_t SyncAndGetElapsedNanos() final { return count_; }
  TVM_FFI_DECLARE_OBJECT_INFO_FINAL("dynprune.InstructionTimer", InstructionTimerNode,
                                    tvm::runtime::TimerNode);

 private:
  int64_t count_ = 0;
};

// One instruction then counts as a nanosecond.
inline void CountInstructions(const std::string& file) {
  int fd = open(file.c_str(), O_RDONLY | O_CLOEXEC);
  void* page = fd < 0 ? MAP_FAILED : mmap(nullptr, 4096, PROT_READ, MAP_SHARED, fd, 0);
  if (page == MAP_FAILED) {
    std::perror(file.c_str());
    std::exit(1);
  }
  counted_instructions = static_cast<volatile const uint64_t*>(page);
  namespace ffi = tvm::ffi;
  auto timer = [](ffi::PackedArgs, ffi::Any* result) {
    *result = ffi::ObjectRef(ffi::make_object<InstructionTimerNode>());
  };
  ffi::Function::SetGlobal("runtime.timer.cpu", ffi::Function(timer), true);
}

}  // namespace dynprune
