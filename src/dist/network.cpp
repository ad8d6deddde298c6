// SPDX-License-Identifier: Apache-2.0
#include "dist/network.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <climits>
#include <cstring>
#include <memory>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "base/error.h"
#include "dist/worker.h"

namespace fettle::dist {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

class Socket {
 public:
  Socket(int family, int type) : descriptor_(::socket(family, type | SOCK_CLOEXEC, 0)) {}
  ~Socket() {
    if (descriptor_ >= 0) ::close(descriptor_);
  }
  Socket(const Socket&) = delete;
  Socket& operator=(const Socket&) = delete;

  [[nodiscard]] int get() const { return descriptor_; }
  int release() { return std::exchange(descriptor_, -1); }

 private:
  int descriptor_;
};

struct Address {
  sockaddr_storage storage = {};
  socklen_t length = 0;
  [[nodiscard]] const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&storage); }
};

struct Resolution {
  std::vector<Address> addresses;
  std::string failure;  ///< why there are none
};

std::string error_text(int number) {
  std::string text = std::generic_category().message(number);
  if (!text.empty()) text[0] = static_cast<char>(std::tolower(static_cast<unsigned char>(text[0])));
  return text;
}

Resolution resolve_now(const std::string& host, uint16_t port) {
  addrinfo hints = {};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICSERV;
  addrinfo* found = nullptr;
  const int code = ::getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found);
  if (code != 0) return {{}, fmt::format("the name does not resolve yet ({})", ::gai_strerror(code))};
  Resolution resolution;
  for (const addrinfo* entry = found; entry != nullptr; entry = entry->ai_next) {
    Address& address = resolution.addresses.emplace_back();
    std::memcpy(&address.storage, entry->ai_addr, entry->ai_addrlen);
    address.length = entry->ai_addrlen;
  }
  ::freeaddrinfo(found);
  return resolution;
}

Resolution resolve(const std::string& host, uint16_t port, milliseconds limit) {
  Worker worker;
  auto answer = std::make_shared<Resolution>();
  const auto progress = worker.start([answer, host, port] { *answer = resolve_now(host, port); });
  if (!progress->wait_for(limit)) return {{}, "the name server does not answer"};
  return *answer;
}

/// Why there is no connection to `address`; empty if there is.
std::string connect_failure(const Address& address, milliseconds limit) {
  const Socket socket(address.storage.ss_family, SOCK_STREAM | SOCK_NONBLOCK);
  if (socket.get() < 0) return error_text(errno);
  if (::connect(socket.get(), address.get(), address.length) == 0) return "";
  if (errno != EINPROGRESS) return error_text(errno);
  pollfd ready = {socket.get(), POLLOUT, 0};
  const auto deadline = Clock::now() + limit;
  for (;;) {
    const auto left = std::chrono::duration_cast<milliseconds>(deadline - Clock::now()).count();
    const int count = ::poll(&ready, 1, static_cast<int>(std::clamp<int64_t>(left, 0, INT_MAX)));
    if (count == 0) return "no answer";
    if (count > 0) break;
    if (errno != EINTR) return error_text(errno);
  }
  int code = 0;
  socklen_t length = sizeof(code);
  ::getsockopt(socket.get(), SOL_SOCKET, SO_ERROR, &code, &length);
  return code == 0 ? "" : error_text(code);
}

std::string numeric(const Address& address) {
  std::array<char, NI_MAXHOST> text = {};
  if (::getnameinfo(address.get(), address.length, text.data(), text.size(), nullptr, 0, NI_NUMERICHOST) != 0)
    return "";
  return text.data();
}

[[noreturn]] void fail_bind(uint16_t port, int number) {
  if (number == EADDRINUSE) {
    throw Error(
        ExitCode::kUnavailable,
        fmt::format("rank 0 cannot listen for the other ranks: another process of {} has port {}", host_name(), port),
        "stop that process (an earlier run?) or choose another MASTER_PORT");
  }
  throw Error(ExitCode::kUnavailable,
              fmt::format("rank 0 cannot listen for the other ranks on port {}: {}", port, error_text(number)),
              "choose another MASTER_PORT");
}

/// -1 if this machine has no addresses of that family.
int bind_family(int family, uint16_t port) {
  Socket socket(family, SOCK_STREAM);
  if (socket.get() < 0) return -1;
  const int on = 1;
  const int off = 0;
  ::setsockopt(socket.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  Address address;
  if (family == AF_INET6) {
    ::setsockopt(socket.get(), IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off));
    auto* any = reinterpret_cast<sockaddr_in6*>(&address.storage);
    any->sin6_family = AF_INET6;
    any->sin6_port = htons(port);
    address.length = sizeof(sockaddr_in6);
  } else {
    auto* any = reinterpret_cast<sockaddr_in*>(&address.storage);
    any->sin_family = AF_INET;
    any->sin_port = htons(port);
    address.length = sizeof(sockaddr_in);
  }
  if (::bind(socket.get(), address.get(), address.length) != 0) {
    if (errno == EADDRNOTAVAIL || errno == EAFNOSUPPORT) return -1;
    fail_bind(port, errno);
  }
  // Two sockets may be bound to a port that neither listens on yet.
  if (::listen(socket.get(), SOMAXCONN) != 0) fail_bind(port, errno);
  return socket.release();
}

}  // namespace

std::string host_name() {
  std::array<char, HOST_NAME_MAX + 1> name = {};
  return ::gethostname(name.data(), HOST_NAME_MAX) == 0 ? name.data() : "unknown";
}

std::string probe(const std::string& host, uint16_t port, milliseconds limit) {
  const auto deadline = Clock::now() + limit;
  const Resolution resolution = resolve(host, port, limit);
  std::string failure = resolution.failure;
  for (const Address& address : resolution.addresses) {
    const auto left = std::chrono::duration_cast<milliseconds>(deadline - Clock::now());
    failure = connect_failure(address, std::max(left, milliseconds(1)));
    if (failure.empty()) return "";
  }
  return failure;
}

std::string local_address_towards(const std::string& host, milliseconds limit) {
  constexpr uint16_t kAnyPort = 9;  // nothing is sent: a datagram socket only chooses its route
  for (const Address& address : resolve(host, kAnyPort, limit).addresses) {
    const Socket socket(address.storage.ss_family, SOCK_DGRAM);
    if (socket.get() < 0 || ::connect(socket.get(), address.get(), address.length) != 0) continue;
    Address local;
    local.length = sizeof(local.storage);
    if (::getsockname(socket.get(), reinterpret_cast<sockaddr*>(&local.storage), &local.length) == 0) {
      return numeric(local);
    }
  }
  return "";
}

bool is_loopback(const std::string& address) {
  return address.starts_with("127.") || address == "::1";
}

int bind_port(uint16_t port) {
  int descriptor = bind_family(AF_INET6, port);
  if (descriptor < 0) descriptor = bind_family(AF_INET, port);
  if (descriptor < 0) fail_bind(port, EAFNOSUPPORT);
  return descriptor;
}

}  // namespace fettle::dist

/// c10d writes peers' addresses into its messages by getnameinfo, which asks the name server whose they are: at every
/// connection, in the only thread of the store, for as long as the name server is silent. This definition goes before
/// the C library's in the whole program, and never asks.
extern "C" int getnameinfo(const sockaddr* __restrict address, socklen_t length, char* __restrict host,
                           socklen_t host_length, char* __restrict service, socklen_t service_length, int flags) {
  using Function = decltype(&::getnameinfo);
  static const auto of_c_library = reinterpret_cast<Function>(::dlsym(RTLD_NEXT, "getnameinfo"));
  const int numeric = (flags & ~NI_NAMEREQD) | NI_NUMERICHOST | NI_NUMERICSERV;
  return of_c_library(address, length, host, host_length, service, service_length, numeric);
}
