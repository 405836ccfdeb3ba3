// SPDX-License-Identifier: Apache-2.0
// What the device is, as JSON.
#pragma once

#include <sys/auxv.h>
#include <sys/statvfs.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <cstdint>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

namespace dynprune {

inline std::string Quoted(const std::string& text) {
  std::string result = "\"";
  for (char c : text) {
    if (c == '"' || c == '\\') result += '\\';
    result += static_cast<unsigned char>(c) < ' ' ? ' ' : c;
  }
  return result + '"';
}

inline std::string FirstLine(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

// Names as in /proc/cpuinfo, from the auxiliary vector, which an emulator answers for its guest.
inline std::string Features() {
  std::vector<std::string> names;
#if defined(__aarch64__)
  struct Bit {
    unsigned long vector, mask;
    const char* name;
  };
  // Linux, arch/arm64/include/uapi/asm/hwcap.h
  static const Bit bits[] = {
      {AT_HWCAP, 1UL << 0, "fp"},       {AT_HWCAP, 1UL << 1, "asimd"},
      {AT_HWCAP, 1UL << 7, "crc32"},    {AT_HWCAP, 1UL << 8, "atomics"},
      {AT_HWCAP, 1UL << 9, "fphp"},     {AT_HWCAP, 1UL << 10, "asimdhp"},
      {AT_HWCAP, 1UL << 12, "asimdrdm"}, {AT_HWCAP, 1UL << 15, "lrcpc"},
      {AT_HWCAP, 1UL << 20, "asimddp"}, {AT_HWCAP, 1UL << 22, "sve"},
      {AT_HWCAP, 1UL << 23, "asimdfhm"}, {AT_HWCAP2, 1UL << 1, "sve2"},
      {AT_HWCAP2, 1UL << 13, "i8mm"},   {AT_HWCAP2, 1UL << 14, "bf16"},
  };
  for (const Bit& bit : bits) {
    if (getauxval(bit.vector) & bit.mask) names.push_back(bit.name);
  }
#endif
  std::string result;
  for (const std::string& name : names) result += (result.empty() ? "" : ", ") + Quoted(name);
  return "[" + result + "]";
}

// Highest frequency of each core, in kHz; 0 where the system does not say. Equal ones are a cluster.
inline std::string CoreFrequencies() {
  std::string result;
  for (long core = 0; core < sysconf(_SC_NPROCESSORS_CONF); ++core) {
    std::string folder = "/sys/devices/system/cpu/cpu" + std::to_string(core);
    std::string line = FirstLine(folder + "/cpufreq/cpuinfo_max_freq");
    result += (core ? ", " : "") + (line.empty() ? "0" : line);
  }
  return "[" + result + "]";
}

inline std::string MemoryKib(const std::string& name) {
  std::ifstream file("/proc/meminfo");
  for (std::string line; std::getline(file, line);) {
    if (line.rfind(name + ":", 0) == 0) {
      std::istringstream words(line.substr(name.size() + 1));
      long kib = 0;
      words >> kib;
      return std::to_string(kib);
    }
  }
  return "0";
}

// In degrees Celsius of the hottest zone; null where none can be read.
inline std::string Temperature() {
  double hottest = -1;
  for (int zone = 0; zone < 64; ++zone) {
    std::string line = FirstLine("/sys/class/thermal/thermal_zone" + std::to_string(zone) + "/temp");
    if (!line.empty()) hottest = std::max(hottest, std::atof(line.c_str()) / 1000);
  }
  return hottest < 0 ? "null" : std::to_string(hottest);
}

inline std::string DeviceInfo(const std::string& work, bool counts_instructions) {
  utsname system{};
  uname(&system);
  struct statvfs disk {};
  statvfs(work.c_str(), &disk);
  std::string model = FirstLine("/proc/device-tree/model");
  std::ostringstream json;
  json << "{\"architecture\": " << Quoted(system.machine)
       << ", \"system\": " << Quoted(std::string(system.sysname) + " " + system.release)
       << ", \"model\": " << Quoted(model.c_str()) << ", \"tvm\": " << Quoted(DYNPRUNE_TVM)
       << ", \"features\": " << Features() << ", \"core_max_khz\": " << CoreFrequencies()
       << ", \"page_bytes\": " << sysconf(_SC_PAGESIZE)
       << ", \"memory_kib\": " << MemoryKib("MemTotal")
       << ", \"memory_free_kib\": " << MemoryKib("MemAvailable")
       << ", \"disk_free_kib\": " << uint64_t(disk.f_bavail) * disk.f_frsize / 1024
       << ", \"temperature_c\": " << Temperature()
       << ", \"clock\": " << (counts_instructions ? "\"instructions\"" : "\"time\"") << "}";
  return json.str();
}

}  // namespace dynprune
