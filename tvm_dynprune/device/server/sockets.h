// SPDX-License-Identifier: Apache-2.0
// Messages over TCP: a length (int32, host order, as TVM has it) and that many bytes.
#pragma once

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <cstdint>
#include <string>

namespace dynprune {

constexpr int32_t kLongestMessage = 1 << 20;

inline bool ReceiveAll(int fd, void* data, size_t size) {
  for (char* at = static_cast<char*>(data); size > 0;) {
    ssize_t count = recv(fd, at, size, 0);
    if (count <= 0) return false;
    at += count;
    size -= static_cast<size_t>(count);
  }
  return true;
}

inline bool SendAll(int fd, const void* data, size_t size) {
  for (const char* at = static_cast<const char*>(data); size > 0;) {
    ssize_t count = send(fd, at, size, MSG_NOSIGNAL);
    if (count <= 0) return false;
    at += count;
    size -= static_cast<size_t>(count);
  }
  return true;
}

inline bool SendMessage(int fd, const std::string& text) {
  int32_t size = static_cast<int32_t>(text.size());
  return SendAll(fd, &size, sizeof size) && SendAll(fd, text.data(), text.size());
}

inline bool ReceiveMessage(int fd, std::string* text) {
  int32_t size;
  if (!ReceiveAll(fd, &size, sizeof size) || size < 0 || size > kLongestMessage) return false;
  text->resize(static_cast<size_t>(size));
  return ReceiveAll(fd, text->data(), text->size());
}

// A peer that falls silent within a message costs this long, not for ever. 0: for ever.
inline void LimitReceiving(int fd, int seconds) {
  timeval limit{seconds, 0};
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
}

// Returns -1 if nobody listens there.
inline int Dial(const std::string& host, const std::string& port) {
  addrinfo hints{}, *found = nullptr;
  hints.ai_family = AF_INET;
  hints.ai_socktype = SOCK_STREAM;
  if (getaddrinfo(host.c_str(), port.c_str(), &hints, &found) != 0) return -1;
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (connect(fd, found->ai_addr, found->ai_addrlen) != 0) {
    close(fd);
    fd = -1;
  }
  freeaddrinfo(found);
  return fd;
}

}  // namespace dynprune
