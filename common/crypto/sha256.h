// SHA-256 (FIPS 180-4) and HMAC-SHA256 (RFC 2104), through OpenSSL.
#pragma once

#include <array>
#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace skerry {

using Sha256Digest = std::array<std::byte, 32>;

Sha256Digest sha256(std::span<const std::byte> data);
Sha256Digest sha256(std::string_view data);
/// 64 lower-case hexadecimal digits.
std::string sha256_hex(std::span<const std::byte> data);
std::string sha256_hex(std::string_view data);

/// Computes a digest from pieces that arrive in order.
class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(Sha256&&) noexcept;
  Sha256& operator=(Sha256&&) noexcept;

  void update(std::span<const std::byte> piece);
  void update(std::string_view piece);
  /// The digest of what was given since the start or the last finish(); the hasher starts anew.
  Sha256Digest finish();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// The message authentication code of `message` under `key` (any length; 32 random bytes are right).
Sha256Digest hmac_sha256(std::string_view key, std::string_view message);

/// Whether both are equal, in a time that depends on the lengths only: for codes and secrets.
bool equal_in_constant_time(std::string_view a, std::string_view b);

}  // namespace skerry
