// SPDX-License-Identifier: Apache-2.0
/// The few questions about the network that come before any connection. None takes longer than it is told, not even
/// the resolution of a name, which the C library bounds by resolv.conf alone.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace fettle::dist {

std::string host_name();

/// Connects to a port and hangs up. Returns why it could not ("the name does not resolve yet", "connection refused"),
/// empty if it could.
std::string probe(const std::string& host, uint16_t port, std::chrono::milliseconds limit);

/// The numeric address of this machine from which packets to `host` leave; empty if the name does not resolve or there
/// is no way. Not the address of the machine's own name, which in many containers is 127.0.1.1.
std::string local_address_towards(const std::string& host, std::chrono::milliseconds limit);

/// Of a numeric address.
bool is_loopback(const std::string& address);

/// A socket that is bound to `port` on all addresses of this machine, IPv6 and IPv4. Throws Error{kUnavailable} if
/// another process has the port.
int bind_port(uint16_t port);

}  // namespace fettle::dist
