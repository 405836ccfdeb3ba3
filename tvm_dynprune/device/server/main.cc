// SPDX-License-Identifier: Apache-2.0
// A TVM RPC server for phones and boards, without Python. One client at a time, each in a process
// of its own, so that a kernel that crashes ends the session and not the server.
//
//   dynprune_server [--host 127.0.0.1] [--port 9090] [--tracker HOST:PORT --key KEY]
//                   [--work DIR] [--threads N] [--cores 4,5,6,7] [--clock FILE]
#include <dlfcn.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <optional>

#include "functions.h"
#include "tracker.h"

namespace dynprune {

using Options = std::map<std::string, std::string>;

constexpr int32_t kClientMagic = 0xff271;      // tvm/rpc/base.py
constexpr int32_t kMismatch = kClientMagic + 2;
constexpr int32_t kStatusMagic = 0x44505231;   // "1RPD": runtime/connect.py asks what this device is
constexpr int kIdlePollMs = 2000;

struct Client {
  int fd;
  std::string address;
};

struct Session {
  Client client;
  pid_t process;
  int limit_s;
  int64_t started_s;
  bool late = false;
};

int64_t Seconds() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec;
}

std::string Meaning(int signal) {
  switch (signal) {
    case SIGILL: return "an instruction that this processor lacks";
    case SIGSEGV: return "memory that it may not touch";
    case SIGBUS: return "memory that is not there";
    case SIGKILL: return "the system, most likely for lack of memory";
    default: return strsignal(signal);
  }
}

class Server {
 public:
  explicit Server(const Options& options) : options_(options) {
    Listen();
    if (options_.count("tracker")) {
      tracker_ = std::make_unique<Tracker>(options_["tracker"], options_["key"]);
    }
    sigset_t child;
    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    sigprocmask(SIG_BLOCK, &child, nullptr);
    children_ = signalfd(-1, &child, SFD_CLOEXEC | SFD_NONBLOCK);
    std::printf("listening on %s:%d\n", options_["host"].c_str(), port_);
    std::fflush(stdout);
  }

  // Sleeps in poll() while a session runs: this process's instructions count on the same clock.
  [[noreturn]] void Run() {
    for (;;) {
      if (!session_ && !waiting_.empty()) Begin();
      if (!session_ && tracker_) tracker_->Offer(port_);
      pollfd events[] = {{listener_, POLLIN, 0}, {children_, POLLIN, 0}};
      poll(events, 2, Patience());
      if (events[0].revents) Accept();
      if (events[1].revents) Reap();
      if (session_ && !session_->late && Left() <= 0) {
        session_->late = true;
        kill(session_->process, SIGKILL);
      }
    }
  }

 private:
  void Listen() {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(std::atoi(options_["port"].c_str())));
    if (inet_pton(AF_INET, options_["host"].c_str(), &address.sin_addr) != 1) {
      std::fprintf(stderr, "dynprune_server: --host %s: an IPv4 address as 127.0.0.1\n",
                   options_["host"].c_str());
      std::exit(2);
    }
    if (ntohl(address.sin_addr.s_addr) != INADDR_LOOPBACK) {
      std::fprintf(stderr, "dynprune_server: whoever reaches %s can run any code on this device\n",
                   options_["host"].c_str());
    }
    listener_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int one = 1;
    setsockopt(listener_, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    socklen_t size = sizeof address;
    auto* generic = reinterpret_cast<sockaddr*>(&address);
    if (bind(listener_, generic, size) != 0 || listen(listener_, 16) != 0) {
      std::perror(("dynprune_server: port " + options_["port"]).c_str());
      std::exit(1);
    }
    getsockname(listener_, generic, &size);
    port_ = ntohs(address.sin_port);
  }

  int64_t Left() const {
    return session_->limit_s ? session_->started_s + session_->limit_s - Seconds() : 1;
  }

  int Patience() const {
    if (session_) return session_->limit_s ? static_cast<int>(std::max<int64_t>(Left(), 0) * 1000) : -1;
    return tracker_ ? kIdlePollMs : -1;
  }

  void Accept() {
    sockaddr_in peer{};
    socklen_t size = sizeof peer;
    int fd = accept4(listener_, reinterpret_cast<sockaddr*>(&peer), &size, SOCK_CLOEXEC);
    if (fd < 0) return;
    LimitReceiving(fd, 5);
    int32_t magic = 0;
    if (!ReceiveAll(fd, &magic, sizeof magic)) {
      close(fd);
    } else if (magic == kStatusMagic) {
      SendMessage(fd, Status());
      close(fd);
    } else if (magic == kClientMagic) {
      char text[INET_ADDRSTRLEN] = "";
      inet_ntop(AF_INET, &peer.sin_addr, text, sizeof text);
      waiting_.push_back({fd, std::string(text) + ":" + std::to_string(ntohs(peer.sin_port))});
    } else {
      close(fd);
    }
  }

  std::string Status() const {
    std::string busy = "null";
    if (session_) {
      busy = "{\"client\": " + Quoted(session_->client.address) +
             ", \"since_s\": " + std::to_string(Seconds() - session_->started_s) + "}";
    }
    return "{\"device\": " + DeviceInfo(options_.at("work"), counted_instructions != nullptr) +
           ", \"busy\": " + busy + ", \"key\": " + Quoted(options_.at("key")) + "}";
  }

  void Begin() {
    Client client = waiting_.front();
    waiting_.pop_front();
    std::string greeting;
    if (!ReceiveMessage(client.fd, &greeting)) {
      close(client.fd);
      return;
    }
    std::string wanted = "client:" + (tracker_ ? tracker_->match() : options_["key"]);
    bool fits = greeting.substr(0, greeting.find(' ')) == wanted;
    int32_t answer = fits ? kClientMagic : kMismatch;
    SendAll(client.fd, &answer, sizeof answer);
    if (!fits) {
      close(client.fd);
      return;
    }
    if (tracker_) tracker_->Taken();
    SendMessage(client.fd, "server:" + options_["key"]);
    size_t at = greeting.find("-timeout=");
    int limit_s = at == std::string::npos ? 0 : std::atoi(greeting.c_str() + at + 9);
    int one = 1;
    setsockopt(client.fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    LimitReceiving(client.fd, 0);
    pid_t process = fork();
    if (process == 0) Serve(client.fd);
    session_ = Session{client, process, limit_s, Seconds()};
  }

  [[noreturn]] void Serve(int fd) const {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, nullptr);
    close(listener_);
    if (tracker_) tracker_->CloseInChild();
    try {
      tvm::ffi::Function::GetGlobalRequired("rpc.ServerLoop")(static_cast<int64_t>(fd));
    } catch (const std::exception& error) {
      std::fprintf(stderr, "%s\n", error.what());
      _exit(1);
    }
    _exit(0);
  }

  void Reap() {
    signalfd_siginfo event;
    while (read(children_, &event, sizeof event) > 0) {
    }
    int status = 0;
    if (!session_ || waitpid(session_->process, &status, WNOHANG) != session_->process) return;
    if (session_->late) {
      Tell("DeviceTimeout: the session's " + std::to_string(session_->limit_s) + " s are over");
    } else if (WIFSIGNALED(status)) {
      int signal = WTERMSIG(status);
      Tell("DeviceCrash: the code on the device was ended by signal " + std::to_string(signal) +
           " (" + strsignal(signal) + "): " + Meaning(signal));
    }
    close(session_->client.fd);
    session_.reset();
  }

  // As an exception of the call that the client waits for, instead of just hanging up.
  void Tell(const std::string& what) const {
    std::printf("%s: %s\n", session_->client.address.c_str(), what.c_str());
    std::fflush(stdout);
    try {
      auto send = tvm::ffi::Function::GetGlobalRequired("rpc.ReturnException");
      send(static_cast<int64_t>(session_->client.fd), tvm::ffi::String(what));
    } catch (const std::exception&) {  // the client is gone
    }
  }

  Options options_;
  int listener_ = -1, children_ = -1, port_ = 0;
  std::unique_ptr<Tracker> tracker_;
  std::deque<Client> waiting_;
  std::optional<Session> session_;
};

void RunOnCores(const std::string& list) {
  cpu_set_t cores;
  CPU_ZERO(&cores);
  for (size_t at = 0; at < list.size();) {
    CPU_SET(std::atoi(list.c_str() + at), &cores);
    size_t comma = list.find(',', at);
    at = comma == std::string::npos ? list.size() : comma + 1;
  }
  if (sched_setaffinity(0, sizeof cores, &cores) != 0) std::perror("dynprune_server: --cores");
  setenv("TVM_BIND_THREADS", "0", 1);  // the system moves threads among these cores only
}

}  // namespace dynprune

int main(int argc, char** argv) {
  dynprune::Options options{
      {"host", "127.0.0.1"}, {"port", "9090"}, {"key", ""}, {"work", "work"}, {"threads", "1"}};
  const std::string known = " --host --port --tracker --key --work --threads --cores --clock ";
  for (int i = 1; i < argc; i += 2) {
    if (known.find(" " + std::string(argv[i]) + " ") == std::string::npos || i + 1 == argc) {
      std::fprintf(stderr, "dynprune_server: %s: options are%seach with a value\n", argv[i],
                   known.c_str());
      return 2;
    }
    options[argv[i] + 2] = argv[i + 1];
  }
  if (options.count("tracker") != (options["key"].empty() ? 0 : 1)) {
    std::fprintf(stderr, "dynprune_server: --tracker and --key go together\n");
    return 2;
  }
  mkdir(options["work"].c_str(), 0700);
  signal(SIGPIPE, SIG_IGN);
  rlimit no_core_files{0, 0};
  setrlimit(RLIMIT_CORE, &no_core_files);
  setenv("TVM_NUM_THREADS", options["threads"].c_str(), 1);
  if (options.count("cores")) dynprune::RunOnCores(options["cores"]);
  if (options.count("clock")) dynprune::CountInstructions(options["clock"]);
  // Beside this program; has what TVM's tuning runners call.
  if (!dlopen("libtvm_runtime_extra.so", RTLD_NOW | RTLD_GLOBAL)) {
    std::fprintf(stderr, "dynprune_server: %s\n", dlerror());
    return 1;
  }
  dynprune::RegisterFunctions(options["work"]);
  dynprune::Server(options).Run();
}
