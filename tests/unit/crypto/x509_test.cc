#include "common/crypto/x509.h"

#include <catch2/catch.hpp>

using namespace skerry;

namespace {

constexpr std::int64_t kNow = 1'800'000'000'000;
constexpr std::int64_t kDay = 24LL * 3600 * 1000;

struct Ca {
  PrivateKey root_key = *PrivateKey::generate();
  PrivateKey issuing_key = *PrivateKey::generate();
  Certificate root = *make_root(root_key, "harbour", "Skerry root", kNow, 100 * kDay);
  Certificate issuing = *make_issuing_ca(issuing_key.public_key(), "Skerry issuing CA", root, root_key, kNow, 50 * kDay);
};

LeafOptions leaf_options() {
  LeafOptions options;
  options.common_name = "alder";
  options.uri = "skerry://harbour/node/alder";
  options.now_ms = kNow;
  options.lifetime_ms = 10 * kDay;
  return options;
}

}  // namespace

TEST_CASE("a leaf leads through the issuing CA to the root") {
  const Ca ca;
  const Certificate leaf = *make_leaf(PrivateKey::generate()->public_key(), leaf_options(), ca.issuing, ca.issuing_key);
  CHECK(ca.root.is_self_signed());
  CHECK(ca.root.is_ca());
  CHECK(ca.issuing.is_signed_by(ca.root));
  CHECK(leaf.is_signed_by(ca.issuing));
  CHECK_FALSE(leaf.is_ca());
  CHECK_FALSE(leaf.is_signed_by(ca.root));
  CHECK(verify_chain({leaf, ca.issuing}, {ca.root}).ok());
  CHECK(verify_chain({leaf}, {ca.root}, {ca.issuing}).ok());
  CHECK_FALSE(verify_chain({leaf}, {ca.root}).ok());
  CHECK_FALSE(verify_chain({leaf, ca.issuing}, {Ca().root}).ok());
  CHECK_FALSE(verify_chain({}, {ca.root}).ok());
}

TEST_CASE("a leaf says what it was asked to say") {
  const Ca ca;
  const PrivateKey key = *PrivateKey::generate();
  LeafOptions options = leaf_options();
  options.dns_names = {"port.example.org", "localhost"};
  options.ip_addresses = {"127.0.0.1", "::1"};
  options.use = LeafUse::kServer;
  const Certificate leaf = *make_leaf(key.public_key(), options, ca.issuing, ca.issuing_key);
  CHECK(leaf.subject() == "O=harbour, CN=alder");
  CHECK(leaf.issuer() == "O=harbour, CN=Skerry issuing CA");
  CHECK(leaf.organisation() == "harbour");
  CHECK(leaf.uris() == std::vector<std::string>{"skerry://harbour/node/alder"});
  CHECK(leaf.dns_names() == options.dns_names);
  CHECK(leaf.ip_addresses() == options.ip_addresses);
  CHECK(leaf.not_before_ms() == kNow - kBackdateMs);
  CHECK(leaf.not_after_ms() == kNow + 10 * kDay);
  CHECK(leaf.is_for(LeafUse::kServer));
  CHECK_FALSE(leaf.is_for(LeafUse::kClient));
  CHECK(*leaf.public_key() == key.public_key());
  CHECK(leaf.thumbprint().size() == 64);
}

TEST_CASE("a certificate ends no later than the CA that signs it") {
  const Ca ca;
  LeafOptions options = leaf_options();
  options.lifetime_ms = 1000 * kDay;
  const Certificate leaf = *make_leaf(PrivateKey::generate()->public_key(), options, ca.issuing, ca.issuing_key);
  CHECK(leaf.not_after_ms() == ca.issuing.not_after_ms());
}

TEST_CASE("a member's certificate cannot sign another") {
  const Ca ca;
  const PrivateKey member_key = *PrivateKey::generate();
  const Certificate member = *make_leaf(member_key.public_key(), leaf_options(), ca.issuing, ca.issuing_key);
  const Certificate forged = *make_leaf(PrivateKey::generate()->public_key(), leaf_options(), member, member_key);
  CHECK_FALSE(verify_chain({forged, member, ca.issuing}, {ca.root}).ok());
}

TEST_CASE("the issuing CA cannot make another CA") {
  const Ca ca;
  const PrivateKey key = *PrivateKey::generate();
  const Certificate sub = *make_issuing_ca(key.public_key(), "below", ca.issuing, ca.issuing_key, kNow, kDay);
  const Certificate leaf = *make_leaf(PrivateKey::generate()->public_key(), leaf_options(), sub, key);
  const auto verified = verify_chain({leaf, sub, ca.issuing}, {ca.root});
  REQUIRE_FALSE(verified.ok());
  CHECK(verified.error().message.find("path length") != std::string::npos);
}

TEST_CASE("serial numbers and thumbprints differ") {
  const Ca ca;
  const PublicKey key = PrivateKey::generate()->public_key();
  const Certificate a = *make_leaf(key, leaf_options(), ca.issuing, ca.issuing_key);
  const Certificate b = *make_leaf(key, leaf_options(), ca.issuing, ca.issuing_key);
  CHECK(a.serial() != b.serial());
  CHECK(a.serial().size() == 32);
  CHECK(a.thumbprint() != b.thumbprint());
}

TEST_CASE("host names and addresses that are none are refused") {
  const Ca ca;
  LeafOptions options = leaf_options();
  options.dns_names = {"two words"};
  CHECK_FALSE(make_leaf(ca.root_key.public_key(), options, ca.issuing, ca.issuing_key).ok());
  options.dns_names = {};
  options.ip_addresses = {"300.1.1.1"};
  CHECK_FALSE(make_leaf(ca.root_key.public_key(), options, ca.issuing, ca.issuing_key).ok());
}

TEST_CASE("certificates survive PEM and DER, and chains are read in order") {
  const Ca ca;
  CHECK(Certificate::from_pem(ca.root.pem())->thumbprint() == ca.root.thumbprint());
  CHECK(Certificate::from_der(ca.root.der())->thumbprint() == ca.root.thumbprint());
  const auto chain = *parse_chain("a comment\n" + chain_pem({ca.issuing, ca.root}));
  REQUIRE(chain.size() == 2);
  CHECK(chain[0].thumbprint() == ca.issuing.thumbprint());
  CHECK(parse_chain("")->empty());
  CHECK_FALSE(Certificate::from_pem("no certificate").ok());
}

TEST_CASE("a damaged chain names the certificate, and an endless one is cut off") {
  const Ca ca;
  std::string damaged = ca.issuing.pem() + ca.root.pem();
  damaged[ca.issuing.pem().size() + 60] = '*';
  const auto chain = parse_chain(damaged);
  REQUIRE_FALSE(chain.ok());
  CHECK(chain.error().message.find("certificate 2") != std::string::npos);
  std::string many;
  for (int i = 0; i < 17; ++i) many += ca.root.pem();
  CHECK_FALSE(parse_chain(many).ok());
}

TEST_CASE("a signing request proves that its sender holds the key") {
  const PrivateKey key = *PrivateKey::generate();
  const std::string request = *make_signing_request(key, "alder");
  CHECK(*check_signing_request(request) == key.public_key());
  CHECK_FALSE(check_signing_request("").ok());
  CHECK_FALSE(check_signing_request(std::string(20'000, 'x')).ok());
  // One digit of the signature, at the end of the base64 text, changed.
  std::string forged = request;
  const std::size_t at = forged.rfind("-----END") - 8;
  forged[at] = forged[at] == 'A' ? 'B' : 'A';
  CHECK_FALSE(check_signing_request(forged).ok());
}

TEST_CASE("times and durations read well") {
  CHECK(format_utc(1'800'000'000'000) == "2027-01-15 08:00:00 UTC");
  CHECK(format_duration(1000) == "1 second");
  CHECK(format_duration(-90'000) == "1 minute");
  CHECK(format_duration(3 * kDay + 5) == "3 days");
  CHECK(format_duration(10) == "0 seconds");
}
