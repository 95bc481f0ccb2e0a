#include "tests/integration/port/world.h"

#include "common/crypto/content_id.h"
#include "common/os/files.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <openssl/bio.h>
#include <openssl/bn.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>
#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>

#include <array>

namespace skerry::test {
namespace {

template <typename T>
T must(Result<T> result) {
  if (!result.ok()) FAIL(to_string(result.error()));
  return std::move(result).value();
}
void must(Result<void> result) {
  if (!result.ok()) FAIL(to_string(result.error()));
}

server::HttpRouter make_routes(World& world) {
  using server::HttpRequest;
  using server::HttpResponse;
  server::HttpRouter router;
  router.add("GET", "/healthz", [](const HttpRequest&) { return HttpResponse::text("ok\n"); });
  router.add("GET", "/metrics", [&world](const HttpRequest&) {
    return HttpResponse::text(world.metrics.prometheus_text(), std::string(server::kPrometheusContentType));
  });
  router.add("GET", "/api/v1/whoami", [](const HttpRequest& request) {
    if (!request.identity) return HttpResponse::json({{"role", "anonymous"}, {"reason", request.anonymous_reason}});
    return HttpResponse::json(
        {{"role", role_name(request.identity->role)}, {"name", request.identity->name}, {"peer", request.peer}});
  });
  router.add("POST", "/api/v1/renew", [](const HttpRequest& request) {
    return HttpResponse::json(
        {{"name", request.identity ? request.identity->name : ""}, {"bytes", request.body.size()}});
  });
  router.add("POST", "/api/v1/enrol", [](const HttpRequest& request) { return HttpResponse::text(request.body); },
             {100'000});
  router.add("GET", "/api/v1/runs/{run}", [](const HttpRequest& request) {
    return HttpResponse::json({{"run", request.param("run")}, {"q", request.query_value("q")}});
  });
  router.add("GET", "/api/v1/status", [&world](const HttpRequest&) {
    world.slow_handlers.fetch_add(1);
    pause_ms(300);
    return HttpResponse::text("slow\n");
  });
  router.add("POST", "/api/v1/runs",
             [](const HttpRequest&) -> HttpResponse { throw std::runtime_error("a handler's mistake"); });
  return router;
}

std::string openssl_reason() {
  std::array<char, 256> text{};
  ERR_error_string_n(ERR_get_error(), text.data(), text.size());
  ERR_clear_error();
  return text.data();
}

std::string alpn_wire(const std::vector<std::string>& protocols) {
  std::string wire;
  for (const std::string& protocol : protocols) {
    wire += static_cast<char>(protocol.size());
    wire += protocol;
  }
  return wire;
}

void set_up(SSL_CTX* context, const TlsOptions& options) {
  if (options.min_version) SSL_CTX_set_min_proto_version(context, options.min_version);
  if (options.max_version) SSL_CTX_set_max_proto_version(context, options.max_version);
  if (!options.alpn.empty()) {
    const std::string wire = alpn_wire(options.alpn);
    SSL_CTX_set_alpn_protos(context, reinterpret_cast<const unsigned char*>(wire.data()),
                            static_cast<unsigned>(wire.size()));
  }
  if (options.as) {
    REQUIRE(SSL_CTX_use_certificate_chain_file(context, options.as->certificate_file.c_str()) == 1);
    REQUIRE(SSL_CTX_use_PrivateKey_file(context, options.as->key_file.c_str(), SSL_FILETYPE_PEM) == 1);
  }
}

}  // namespace

World::World(const std::function<void(server::PortOptions&)>& change, server::RateLimits rates) : home(dir / "home") {
  must(make_directories(home));
  must(server::init_home(home, {.federation = "harbour",
                                .hosts = {"127.0.0.1", "localhost"},
                                .address = "127.0.0.1:1",
                                .now_ms = clock.unix_ms()}));
  authority = std::make_unique<server::CertificateAuthority>(must(server::CertificateAuthority::open(home)));
  authenticator = std::make_unique<Authenticator>(authority->anchors());
  must(write_file_atomic(dir / "ca.crt", authority->ca_pem()));
  gate = std::make_unique<server::Gate>(*authenticator, clock, rates, &metrics);
  cargo = must(server::CargoStore::open(home));
  control = make_control(*gate);

  server::PortOptions options;
  options.address = "127.0.0.1";
  options.certificate_file = join_path(home, "server.crt");
  options.key_file = join_path(home, "server.key");
  options.gate = gate.get();
  options.clock = &clock;
  options.metrics = &metrics;
  options.cargo = cargo.get();
  options.cargo_access.may_read = [](const Identity&, const std::string&) -> Result<void> { return {}; };
  options.cargo_access.check_upload = [](const Identity& caller, const std::string&, const std::string& ticket,
                                         const std::string&, std::uint64_t) -> Result<std::string> {
    if (ticket != "good") return unauthenticated("the ticket is not ours");
    return caller.role == Role::kNode ? std::string("run.1") : std::string();
  };
  options.measure_routes = true;
  options.certificate_check = std::chrono::seconds(1);
  if (change) change(options);
  port = must(server::Port::open(std::move(options), {control.get()}, make_routes(*this)));
}

World::~World() {
  if (port) port->shutdown(std::chrono::milliseconds(100));
}

Member World::member(Role role, const std::string& name, std::int64_t lifetime_ms) {
  const PrivateKey key = must(PrivateKey::generate());
  std::int64_t begin = clock.unix_ms();
  if (lifetime_ms < 0) {
    begin += lifetime_ms - 3'600'000;
    lifetime_ms = 3'600'000;
  }
  const auto issued = must(authority->issue_member(key.public_key(), role, name, begin, lifetime_ms));
  const Member member{dir / (name + ".crt"), dir / (name + ".key"), issued.certificate.thumbprint()};
  must(write_file_atomic(member.certificate_file, issued.chain_pem));
  must(key.save(member.key_file));
  return member;
}

void World::revoke(const Member& member) { authenticator->revoke(member.thumbprint, "the laptop was stolen"); }

std::string World::url(const std::string& path) const {
  return "https://127.0.0.1:" + std::to_string(port->port()) + path;
}

Finished World::curl(const std::string& path, std::vector<std::string> arguments, const Member* as) const {
  std::vector<std::string> command{"curl", "-sS", "--cacert", dir / "ca.crt", "--max-time", "30"};
  if (as) command.insert(command.end(), {"--cert", as->certificate_file, "--key", as->key_file});
  command.insert(command.end(), arguments.begin(), arguments.end());
  command.push_back(url(path));
  return run_program(command);
}

std::string World::status(const std::string& path, std::vector<std::string> arguments, const Member* as) const {
  arguments.insert(arguments.end(), {"-o", dir / "curl.out", "-w", "%{http_code}"});
  return curl(path, std::move(arguments), as).out;
}

// ---- raw clients ----

Raw::Raw(std::uint16_t port) : context_(nullptr, SSL_CTX_free), ssl_(nullptr, SSL_free) {
  socket_ = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  REQUIRE(::connect(socket_, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
}

Raw::~Raw() {
  ssl_.reset();
  ::close(socket_);
}

void Raw::send_plain(std::string_view bytes) {
  REQUIRE(::send(socket_, bytes.data(), bytes.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(bytes.size()));
}

std::string Raw::receive_plain(std::int64_t timeout_ms) {
  std::string all;
  std::array<char, 4096> piece{};
  for (;;) {
    pollfd waiting{socket_, POLLIN, 0};
    if (::poll(&waiting, 1, static_cast<int>(timeout_ms)) <= 0) return all;
    const ssize_t count = ::recv(socket_, piece.data(), piece.size(), 0);
    if (count <= 0) {
      ended_ = true;
      return all;
    }
    all.append(piece.data(), static_cast<std::size_t>(count));
  }
}

std::string Raw::handshake(const TlsOptions& options) {
  context_.reset(SSL_CTX_new(TLS_client_method()));
  set_up(context_.get(), options);
  ssl_.reset(SSL_new(context_.get()));
  SSL_set_fd(ssl_.get(), socket_);
  const timeval patience{10, 0};
  ::setsockopt(socket_, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
  return SSL_connect(ssl_.get()) == 1 ? "" : openssl_reason();
}

bool Raw::send(std::string_view bytes) {
  return SSL_write(ssl_.get(), bytes.data(), static_cast<int>(bytes.size())) == static_cast<int>(bytes.size());
}

std::string Raw::receive(std::int64_t timeout_ms) {
  const timeval patience{timeout_ms / 1000, timeout_ms % 1000 * 1000};
  ::setsockopt(socket_, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
  std::string all;
  std::array<char, 4096> piece{};
  for (;;) {
    const int count = SSL_read(ssl_.get(), piece.data(), static_cast<int>(piece.size()));
    if (count <= 0) {
      ended_ = SSL_get_error(ssl_.get(), count) != SSL_ERROR_WANT_READ;
      return all;
    }
    all.append(piece.data(), static_cast<std::size_t>(count));
  }
}

std::string Raw::protocol() const {
  const unsigned char* name = nullptr;
  unsigned length = 0;
  SSL_get0_alpn_selected(ssl_.get(), &name, &length);
  return std::string(reinterpret_cast<const char*>(name), length);
}

std::string Raw::server_serial() const {
  const std::unique_ptr<X509, void (*)(X509*)> certificate(SSL_get1_peer_certificate(ssl_.get()), X509_free);
  const std::unique_ptr<BIGNUM, void (*)(BIGNUM*)> number(
      ASN1_INTEGER_to_BN(X509_get0_serialNumber(certificate.get()), nullptr), BN_free);
  char* hex = BN_bn2hex(number.get());
  std::string text(hex);
  OPENSSL_free(hex);
  return text;
}

std::string client_hello_bytes(const std::vector<std::string>& alpn) {
  const std::unique_ptr<SSL_CTX, void (*)(SSL_CTX*)> context(SSL_CTX_new(TLS_client_method()), SSL_CTX_free);
  set_up(context.get(), {nullptr, alpn, 0, 0});
  const std::unique_ptr<SSL, void (*)(SSL*)> ssl(SSL_new(context.get()), SSL_free);
  BIO* out = BIO_new(BIO_s_mem());
  SSL_set_bio(ssl.get(), BIO_new(BIO_s_mem()), out);
  SSL_connect(ssl.get());
  char* data = nullptr;
  const long size = BIO_get_mem_data(out, &data);
  return std::string(data, static_cast<std::size_t>(size));
}

std::string pattern_bytes(std::size_t count) {
  std::string bytes(count, '\0');
  std::uint64_t state = 88172645463325252u;
  for (char& byte : bytes) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    byte = static_cast<char>(state);
  }
  return bytes;
}

}  // namespace skerry::test
