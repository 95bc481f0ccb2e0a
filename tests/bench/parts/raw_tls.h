// The baseline of everything that travels: OpenSSL over one TCP connection on loopback, nothing else.
#pragma once

#include <cstdint>

#include "common/base/result.h"

namespace skerry::bench {

/// Bytes a second of application data from one thread to another: TLS 1.3 with OpenSSL's default cipher, blocking sockets,
/// `piece` bytes a call. Both ends run on this machine, so that two cores are busy.
Result<double> raw_tls_rate(std::uint64_t bytes, std::size_t piece = 64 * 1024);

}  // namespace skerry::bench
