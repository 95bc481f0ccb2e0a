// A node that says over the wire whatever a test wants, with a real certificate: for tests of what a coordinator does
// about daemons that lie.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/crypto/keys.h"
#include "common/identity/profile.h"
#include "common/net/http_client.h"
#include "skerry/v1/fleet.pb.h"

namespace skerry::test {

class RawNode {
 public:
  /// `home` is a joined node's. Throws std::runtime_error if its files cannot be read.
  explicit RawNode(const std::string& home);
  ~RawNode();

  const Profile& profile() const { return profile_; }

  /// Opens a session, says Hello and waits for the Welcome; throws after ten seconds. Accepts every run it hears of, with
  /// `examples` examples of a data set "table".
  void connect(std::uint64_t examples = 100);
  void send(v1::FromNode message);
  void disconnect();
  /// Why the session ended, once it has.
  std::optional<Error> ended() const;

  /// The next train task that was not handed out by this call before; throws after `timeout_ms`.
  v1::Task next_task(std::int64_t timeout_ms = 30'000);

  /// The first receipt for the task since the last call that asked for the same; throws after `timeout_ms`.
  v1::Receipt receipt(const std::string& task, std::int64_t timeout_ms = 10'000);

  /// An update as an honest daemon would make it: a small vector of `elements` values for fragment "all", inline.
  v1::UpdateBody honest_body(const v1::Task& task, std::uint64_t elements, float value = 0.001f) const;
  v1::SignedUpdate sign(const v1::UpdateBody& body) const;
  void offer(const v1::UpdateBody& body);

  /// HTTPS with this node's certificate.
  HttpResponse http(const std::string& method, const std::string& path, const std::string& body = {},
                    const std::vector<std::pair<std::string, std::string>>& headers = {}) const;

 private:
  struct State;
  Profile profile_;
  PrivateKey key_;
  std::shared_ptr<State> state_;  // shared with the session's callbacks, which may outlive a session that will not end
};

/// The bytes of an f32 vector.
std::string f32_bytes(const std::vector<float>& values);

}  // namespace skerry::test
