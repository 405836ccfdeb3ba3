// SPDX-License-Identifier: Apache-2.0
// What a server tells TVM's RPC tracker (tvm/rpc/base.py has the protocol): who it is, and that it
// is free. The tracker hands a match key to the client that gets the device.
#pragma once

#include <string>

#include "sockets.h"

namespace dynprune {

class Tracker {
 public:
  Tracker(const std::string& address, const std::string& key) : key_(key) {
    size_t colon = address.rfind(':');
    host_ = address.substr(0, colon);
    port_ = colon == std::string::npos ? "9190" : address.substr(colon + 1);
  }

  // The key by which a client must call; changes with every offer.
  const std::string& match() const { return match_; }

  // Registers where that was lost, and offers the device where it is not on offer. An offer that
  // was handed out and then not taken up is renewed.
  void Offer(int port) {
    if (fd_ < 0 && !Register(port)) return;
    std::string reply;
    if (offered_) {
      if (!Call("[7]", &reply)) return Lose();
      if (reply.find('"' + match_ + '"') != std::string::npos) {
        unseen_ = 0;
        return;
      }
      if (++unseen_ <= kUnseen) return;
    }
    match_ = key_ + ":" + std::to_string(getpid()) + "." + std::to_string(++serial_);
    std::string place = "[" + std::to_string(port) + ", \"" + match_ + "\"]";
    if (!Call("[3, \"" + key_ + "\", " + place + ", null]", &reply)) return Lose();
    offered_ = true;
    unseen_ = 0;
  }

  // A client has come.
  void Taken() { offered_ = false; }

  void CloseInChild() const {
    if (fd_ >= 0) close(fd_);
  }

 private:
  static constexpr int32_t kMagic = 0x2f271;
  static constexpr int kUnseen = 3;  // polls for which a client may be on its way

  bool Register(int port) {
    fd_ = Dial(host_, port_);
    if (fd_ < 0) return false;
    LimitReceiving(fd_, 5);
    int32_t magic = kMagic;
    std::string reply;
    std::string self = "{\"key\": \"server:" + key_ + "\", \"addr\": [null, " + std::to_string(port) + "]}";
    if (SendAll(fd_, &magic, sizeof magic) && ReceiveAll(fd_, &magic, sizeof magic) &&
        magic == kMagic && Call("[5, " + self + "]", &reply)) {
      return true;
    }
    Lose();
    return false;
  }

  bool Call(const std::string& request, std::string* reply) {
    return SendMessage(fd_, request) && ReceiveMessage(fd_, reply);
  }

  void Lose() {
    close(fd_);
    fd_ = -1;
    offered_ = false;
  }

  std::string host_, port_, key_, match_;
  int fd_ = -1, serial_ = 0, unseen_ = 0;
  bool offered_ = false;
};

}  // namespace dynprune
