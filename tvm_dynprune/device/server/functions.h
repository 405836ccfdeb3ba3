// SPDX-License-Identifier: Apache-2.0
// What the server offers to clients besides the runtime's own functions.
#pragma once

#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/reflection/registry.h>

#include <fstream>
#include <string>
#include <vector>

#include "clock.h"
#include "device_info.h"
#include "weights.h"

namespace dynprune {

// CRC-32 (ISO 3309, as zlib computes it) of a file; -1 if there is none.
inline int64_t Crc32(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return -1;
  uint32_t crc = ~0u;
  std::vector<char> block(1 << 16);
  while (file.read(block.data(), static_cast<std::streamsize>(block.size())) || file.gcount()) {
    for (std::streamsize i = 0; i < file.gcount(); ++i) {
      crc ^= static_cast<unsigned char>(block[static_cast<size_t>(i)]);
      for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ (0xEDB88320u & (0u - (crc & 1)));
    }
  }
  return static_cast<uint32_t>(~crc);
}

// Kernels in the order in which the virtual machine called them, with what the clock gave each.
class Profile {
 public:
  void Around(const std::string& name, bool before) {
    if (before) {
      started_.push_back(Now());
    } else {
      int64_t taken = Now() - started_.back();
      started_.pop_back();
      calls_.push_back("[" + Quoted(name) + ", " + std::to_string(taken) + "]");
    }
  }

  std::string Take() {
    std::string json;
    for (const std::string& call : calls_) json += (json.empty() ? "" : ", ") + call;
    calls_.clear();
    return "[" + json + "]";
  }

 private:
  std::vector<int64_t> started_;
  std::vector<std::string> calls_;
};

inline void RegisterFunctions(const std::string& work) {
  using namespace tvm::ffi;
  static Profile profile;
  auto place = [work](String name) { return work + "/" + std::string(name); };
  tvm::ffi::reflection::GlobalDef()
      .def("tvm.rpc.server.workpath", [place](String name) -> String { return place(name); })
      .def("tvm.rpc.server.load_module",
           [place](String name) -> Module { return Module::LoadFromFile(place(name)); })
      .def("dynprune.map_weights",
           [place](String name, String layout) { return MapWeights(place(name), layout); })
      .def("dynprune.crc32", [place](String name) -> int64_t { return Crc32(place(name)); })
      .def("dynprune.device_info",
           [work]() -> String { return DeviceInfo(work, counted_instructions != nullptr); })
      // The virtual machine's set_instrument takes the name of a function that makes one.
      .def("dynprune.profile",
           []() -> Function {
             return Function([](PackedArgs arguments, Any* result) {
               profile.Around(arguments[1].cast<String>(), arguments[2].cast<bool>());
               *result = 0;
             });
           })
      .def("dynprune.profile_take", []() -> String { return profile.Take(); });
}

}  // namespace dynprune
