// The least that any program with gRPC and TLS costs: a server without services.
#pragma once

#include <string>

#include "common/base/result.h"

namespace skerry::bench {

/// Serves nothing on a port of 127.0.0.1 with the certificate and key in these files, writes its number to `ready_file`, and
/// returns at the end of file on stdin.
Result<void> run_bare_server(const std::string& certificate_file, const std::string& key_file, const std::string& ready_file);

}  // namespace skerry::bench
