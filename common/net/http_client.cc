#include "common/net/http_client.h"

#include <curl/curl.h>
#include <openssl/x509_vfy.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

namespace skerry {
namespace {

constexpr long kBufferBytes = 512 * 1024;
constexpr std::size_t kMaxHeaderBytes = 64 * 1024;

void start_libcurl() {
  [[maybe_unused]] static const CURLcode started = curl_global_init(CURL_GLOBAL_DEFAULT);
}

// One request under way: what libcurl's callbacks read and write.
struct Exchange {
  const HttpRequest& request;
  CURL* handle;
  const std::atomic<bool>* cancelled;
  HttpResponse response;
  std::uint64_t sent = 0;
  std::size_t header_bytes = 0;
  std::optional<Error> failure;

  std::uint64_t upload_size() const {
    if (request.file) return request.file->size;
    if (!request.memory.empty()) return request.memory.size();
    return request.body.size();
  }
};

std::size_t give_upload(char* buffer, std::size_t size, std::size_t count, void* user) {
  auto& exchange = *static_cast<Exchange*>(user);
  const std::size_t wanted =
      static_cast<std::size_t>(std::min<std::uint64_t>(size * count, exchange.upload_size() - exchange.sent));
  if (wanted == 0) return 0;
  if (exchange.request.file) {
    const FileSlice& file = *exchange.request.file;
    const ssize_t got = ::pread(file.fd, buffer, wanted, static_cast<off_t>(file.offset + exchange.sent));
    if (got <= 0) {
      exchange.failure = data_loss("the file to be uploaded " +
                                   (got == 0 ? std::string("is shorter than it was") : "cannot be read: " + std::string(std::strerror(errno))));
      return CURL_READFUNC_ABORT;
    }
    exchange.sent += static_cast<std::uint64_t>(got);
    return static_cast<std::size_t>(got);
  }
  const void* source = exchange.request.memory.empty() ? static_cast<const void*>(exchange.request.body.data())
                                                       : static_cast<const void*>(exchange.request.memory.data());
  std::memcpy(buffer, static_cast<const char*>(source) + exchange.sent, wanted);
  exchange.sent += wanted;
  return wanted;
}

// libcurl goes back to the start when a kept connection turns out to be dead. Not so where much was sent already: the
// connection broke in the middle, and the caller knows better than to send everything again.
constexpr std::uint64_t kSentAgain = 1 << 20;

int seek_upload(void* user, curl_off_t offset, int origin) {
  auto& exchange = *static_cast<Exchange*>(user);
  if (exchange.sent > kSentAgain) return CURL_SEEKFUNC_FAIL;
  if (origin != SEEK_SET || offset < 0 || static_cast<std::uint64_t>(offset) > exchange.upload_size())
    return CURL_SEEKFUNC_FAIL;
  exchange.sent = static_cast<std::uint64_t>(offset);
  return CURL_SEEKFUNC_OK;
}

std::size_t take_body(char* data, std::size_t size, std::size_t count, void* user) {
  auto& exchange = *static_cast<Exchange*>(user);
  const std::size_t bytes = size * count;
  long status = 0;
  curl_easy_getinfo(exchange.handle, CURLINFO_RESPONSE_CODE, &status);
  if (exchange.request.sink && status >= 200 && status < 300) {
    auto taken = exchange.request.sink(static_cast<int>(status), std::as_bytes(std::span<const char>(data, bytes)));
    if (taken.ok()) return bytes;
    exchange.failure = std::move(taken).error();
    return 0;
  }
  if (exchange.response.body.size() + bytes > exchange.request.max_body) {
    Error error = resource_exhausted("the answer is longer than the " + std::to_string(exchange.request.max_body) +
                                     " bytes expected");
    error.retryable = false;
    exchange.failure = std::move(error);
    return 0;
  }
  exchange.response.body.append(data, bytes);
  return bytes;
}

std::size_t take_header(char* data, std::size_t size, std::size_t count, void* user) {
  auto& exchange = *static_cast<Exchange*>(user);
  std::string_view line(data, size * count);
  if (line.substr(0, 5) == "HTTP/") exchange.response.headers.clear();  // the answer after a 100 or a proxy's own
  exchange.header_bytes += line.size();
  if (exchange.header_bytes > kMaxHeaderBytes) {
    exchange.failure = invalid_argument("the answer's headers are longer than " + std::to_string(kMaxHeaderBytes) + " bytes");
    return 0;
  }
  const std::size_t colon = line.find(':');
  if (colon != line.npos) {
    std::string name(line.substr(0, colon));
    for (char& c : name)
      if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
    std::string_view value = line.substr(colon + 1);
    const std::size_t begin = value.find_first_not_of(" \t");
    const std::size_t end = value.find_last_not_of(" \t\r\n");
    value = begin == value.npos || end == value.npos ? std::string_view() : value.substr(begin, end - begin + 1);
    exchange.response.headers.emplace_back(std::move(name), value);
  }
  return size * count;
}

int look_for_cancellation(void* user, curl_off_t, curl_off_t, curl_off_t, curl_off_t) {
  const auto& exchange = *static_cast<const Exchange*>(user);
  return exchange.cancelled != nullptr && exchange.cancelled->load(std::memory_order_relaxed) ? 1 : 0;
}

// "host:port" of a URL; never its user part or path.
std::string host_of(std::string_view url) {
  const std::size_t scheme = url.find("://");
  if (scheme != url.npos) url.remove_prefix(scheme + 3);
  url = url.substr(0, url.find_first_of("/?#"));
  const std::size_t at = url.rfind('@');
  if (at != url.npos) url.remove_prefix(at + 1);
  return std::string(url);
}

bool mentions(const std::string& text, const char* part) { return text.find(part) != std::string::npos; }

Error certificate_error(long verify_result, const std::string& host, const std::string& detail) {
  // libcurl compares host names itself and then leaves OpenSSL's result unset.
  if (mentions(detail, "subject name")) verify_result = X509_V_ERR_HOSTNAME_MISMATCH;
  switch (verify_result) {
    case X509_V_ERR_CERT_HAS_EXPIRED:
      return unauthenticated("the certificate of " + host + " has expired; renew it there, or set this machine's clock if it is off");
    case X509_V_ERR_CERT_NOT_YET_VALID:
      return unauthenticated("the certificate of " + host + " is not yet valid; a clock is off, compare both machines with date -u");
    case X509_V_ERR_HOSTNAME_MISMATCH:
    case X509_V_ERR_IP_ADDRESS_MISMATCH:
      return unauthenticated("the certificate of " + host + " is for another host name; use the address it was made for, or add "
                             "this name to the server's certificate");
    case X509_V_ERR_INVALID_PURPOSE:
      return unauthenticated("the certificate of " + host + " is not a server's certificate: something else answers at this address");
    case X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT:
    case X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN:
    case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT:
    case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY:
    case X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE:
    case X509_V_ERR_CERT_SIGNATURE_FAILURE:
      return unauthenticated("the certificate of " + host + " is signed by another CA than the one trusted here (" +
                             X509_verify_cert_error_string(verify_result) +
                             "); check the address, or whether something intercepts TLS on the way");
    default:
      return unauthenticated("the certificate of " + host + " cannot be verified: " + detail);
  }
}

Error proxy_error(const std::string& proxy, const std::string& host, long connect_code, const std::string& detail) {
  if (connect_code == 407)
    return permission_denied("the proxy " + proxy + " wants a user and password (407); give them as http://user:password@host:port");
  if (connect_code >= 400)
    return unavailable("the proxy " + proxy + " refused to connect to " + host + " (status " + std::to_string(connect_code) +
                       "); ask its administrator to allow CONNECT to this address");
  return unavailable("the proxy " + proxy + " cannot be used: " + detail + "; check its address");
}

Error transport_error(CURLcode code, CURL* handle, const std::string& detail, const HttpOptions& options, const std::string& host) {
  long verify_result = 0;
  long connect_code = 0;
  curl_easy_getinfo(handle, CURLINFO_SSL_VERIFYRESULT, &verify_result);
  curl_easy_getinfo(handle, CURLINFO_HTTP_CONNECTCODE, &connect_code);
  const std::string proxy = host_of(options.proxy);
  switch (code) {
    case CURLE_ABORTED_BY_CALLBACK:
      return {Code::kCancelled, "the request to " + host + " was cancelled", true};
    case CURLE_URL_MALFORMAT:
    case CURLE_UNSUPPORTED_PROTOCOL:
      return invalid_argument("the address of " + host + " is not an https URL: " + detail);
    case CURLE_COULDNT_RESOLVE_PROXY:
    case CURLE_PROXY:
      return proxy_error(proxy, host, connect_code, detail);
    case CURLE_COULDNT_RESOLVE_HOST:
      return unavailable("the name in " + host + " cannot be resolved; check the address and this machine's DNS");
    case CURLE_COULDNT_CONNECT:
      if (!proxy.empty()) return proxy_error(proxy, host, connect_code, detail);
      return unavailable("cannot connect to " + host + " (" + detail + "); check that the coordinator runs, its port and any firewall");
    case CURLE_OPERATION_TIMEDOUT:
      if (mentions(detail, "Operation too slow"))
        return unavailable("the connection to " + host + " made no progress for " + std::to_string(options.stall_timeout_s) + " s");
      return unavailable("no connection to " + host + " within " + std::to_string(options.connect_timeout_ms) +
                         " ms; check the address and any firewall");
    case CURLE_PEER_FAILED_VERIFICATION:
      return certificate_error(verify_result, host, detail);
    case CURLE_SSL_CERTPROBLEM:
      return invalid_argument("the own certificate " + options.certificate_path + " or key " + options.key_path +
                              " cannot be used: " + detail);
    case CURLE_SSL_CACERT_BADFILE:
      return invalid_argument("the trusted CA certificates cannot be read: " + detail);
    case CURLE_SSL_CONNECT_ERROR:
      if (mentions(detail, "protocol version") || mentions(detail, "unsupported protocol") || mentions(detail, "wrong version number"))
        return failed_precondition(host + " does not speak TLS 1.3 (" + detail + "); check that it is a Skerry coordinator's port");
      return unavailable("TLS with " + host + " failed: " + detail);
    case CURLE_GOT_NOTHING:
    case CURLE_SEND_ERROR:
    case CURLE_SEND_FAIL_REWIND:
    case CURLE_RECV_ERROR:
    case CURLE_PARTIAL_FILE:
      // TLS 1.3 servers refuse a client's certificate after the handshake: it shows as an alert while reading.
      if (mentions(detail, "alert certificate") || mentions(detail, "alert bad certificate") || mentions(detail, "alert unknown ca"))
        return unauthenticated(host + " refused this client's certificate: " + detail);
      // With a CONNECT proxy that answers anything but 2xx, libcurl reports a receive error.
      if (!proxy.empty() && connect_code >= 300) return proxy_error(proxy, host, connect_code, detail);
      return unavailable("the connection to " + host + " broke off: " + detail);
    case CURLE_OUT_OF_MEMORY:
      return internal_error("no memory for the request to " + host);
    default:
      return unavailable("the request to " + host + " failed: " + detail);
  }
}

struct FreeList {
  void operator()(curl_slist* list) const { curl_slist_free_all(list); }
};
using HeaderList = std::unique_ptr<curl_slist, FreeList>;

Result<HeaderList> header_list(const HttpRequest& request) {
  // No "Expect: 100-continue": it costs a round trip and the coordinator answers early where it refuses.
  HeaderList list(curl_slist_append(nullptr, "Expect:"));
  bool has_type = false;
  for (const auto& [name, value] : request.headers) {
    if (name.find_first_of("\r\n:") != name.npos || value.find_first_of("\r\n") != value.npos)
      return invalid_argument("the request header '" + name.substr(0, 40) + "' contains a line break or a colon");
    has_type = has_type || name == "Content-Type";
    curl_slist* longer = curl_slist_append(list.get(), (name + ": " + value).c_str());
    if (longer == nullptr) return internal_error("no memory for request headers");
    static_cast<void>(list.release());
    list.reset(longer);
  }
  if (!has_type && (request.method == "POST" || request.method == "PUT"))
    curl_slist_append(list.get(), request.file || !request.memory.empty() ? "Content-Type: application/octet-stream"
                                                                          : "Content-Type: application/json");
  return list;
}

}  // namespace

std::string_view HttpResponse::header(std::string_view name) const {
  for (const auto& [key, value] : headers)
    if (key == name) return value;
  return {};
}

struct HttpClient::State {
  HttpOptions options;
  CURL* handle = nullptr;
  std::array<char, CURL_ERROR_SIZE> detail{};

  explicit State(HttpOptions given) : options(std::move(given)) {
    start_libcurl();
    handle = curl_easy_init();
  }
  ~State() { curl_easy_cleanup(handle); }

  // The options that every request of this client has; the connection cache survives a curl_easy_reset.
  void prepare() {
    curl_easy_reset(handle);
    detail[0] = '\0';
    set(CURLOPT_ERRORBUFFER, detail.data());
    set(CURLOPT_NOSIGNAL, 1L);
    set(CURLOPT_PROTOCOLS_STR, "https");
    set(CURLOPT_FOLLOWLOCATION, 0L);
    set(CURLOPT_HTTP_VERSION, static_cast<long>(CURL_HTTP_VERSION_1_1));
    set(CURLOPT_SSLVERSION, static_cast<long>(CURL_SSLVERSION_TLSv1_3));
    set(CURLOPT_USERAGENT, "skerry");
    set(CURLOPT_SUPPRESS_CONNECT_HEADERS, 1L);
    set(CURLOPT_BUFFERSIZE, kBufferBytes);
    set(CURLOPT_UPLOAD_BUFFERSIZE, kBufferBytes);
    set(CURLOPT_TCP_NODELAY, 1L);
    set(CURLOPT_TCP_KEEPALIVE, 1L);
    set(CURLOPT_CONNECTTIMEOUT_MS, static_cast<long>(options.connect_timeout_ms));
    set(CURLOPT_LOW_SPEED_LIMIT, static_cast<long>(options.min_bytes_per_second));
    set(CURLOPT_LOW_SPEED_TIME, static_cast<long>(options.stall_timeout_s));
    // Never the environment's proxy: what leaves, and how, is configuration that can be read in one place.
    set(CURLOPT_PROXY, options.proxy.c_str());
    set(CURLOPT_NOPROXY, "");
    if (!options.proxy.empty()) set(CURLOPT_HTTPPROXYTUNNEL, 1L);
    if (!options.verify_server) {
      set(CURLOPT_SSL_VERIFYPEER, 0L);
      set(CURLOPT_SSL_VERIFYHOST, 0L);
    } else {
      // Exactly these anchors: neither the system's bundle nor its directory.
      set(CURLOPT_CAPATH, static_cast<char*>(nullptr));
      set(CURLOPT_CAINFO, static_cast<char*>(nullptr));
      curl_blob anchors{options.ca_pem.data(), options.ca_pem.size(), CURL_BLOB_NOCOPY};
      set(CURLOPT_CAINFO_BLOB, &anchors);
    }
    if (!options.certificate_path.empty()) {
      set(CURLOPT_SSLCERT, options.certificate_path.c_str());
      set(CURLOPT_SSLKEY, options.key_path.c_str());
    }
  }

  template <typename T>
  void set(CURLoption option, T value) {
    curl_easy_setopt(handle, option, value);
  }

  void set_method(const HttpRequest& request, std::uint64_t upload_size) {
    if (request.method == "GET") {
      set(CURLOPT_HTTPGET, 1L);
    } else if (request.method == "HEAD") {
      set(CURLOPT_NOBODY, 1L);
    } else if (request.method == "POST" || request.method == "PUT") {
      set(CURLOPT_UPLOAD, 1L);
      set(CURLOPT_CUSTOMREQUEST, request.method.c_str());
      set(CURLOPT_INFILESIZE_LARGE, static_cast<curl_off_t>(upload_size));
    } else {
      set(CURLOPT_CUSTOMREQUEST, request.method.c_str());
    }
  }
};

HttpClient::HttpClient(HttpOptions options) : state_(std::make_unique<State>(std::move(options))) {}
HttpClient::~HttpClient() = default;
HttpClient::HttpClient(HttpClient&&) noexcept = default;
HttpClient& HttpClient::operator=(HttpClient&&) noexcept = default;

void HttpClient::watch(const std::atomic<bool>* cancelled) { state_->options.cancelled = cancelled; }

void HttpClient::reconfigure(HttpOptions options) { state_ = std::make_unique<State>(std::move(options)); }

Result<HttpResponse> HttpClient::send(const HttpRequest& request) {
  State& state = *state_;
  const std::string host = host_of(request.url);
  if (state.handle == nullptr) return internal_error("no memory for an HTTPS client");
  if (request.url.compare(0, 8, "https://") != 0)
    return invalid_argument("the address of " + host + " is not an https URL");
  if (state.options.verify_server && state.options.ca_pem.empty())
    return invalid_argument("no CA certificates are given to verify " + host + " with");
  state.prepare();
  SKERRY_ASSIGN(const HeaderList headers, header_list(request));
  Exchange exchange{request, state.handle, state.options.cancelled, {}, 0, 0, std::nullopt};
  state.set(CURLOPT_URL, request.url.c_str());
  state.set(CURLOPT_HTTPHEADER, headers.get());
  state.set_method(request, exchange.upload_size());
  std::string range;
  if (request.range_first) {
    range = std::to_string(*request.range_first) + "-" + (request.range_last ? std::to_string(*request.range_last) : "");
    state.set(CURLOPT_RANGE, range.c_str());
  }
  state.set(CURLOPT_READFUNCTION, &give_upload);
  state.set(CURLOPT_READDATA, &exchange);
  state.set(CURLOPT_SEEKFUNCTION, &seek_upload);
  state.set(CURLOPT_SEEKDATA, &exchange);
  state.set(CURLOPT_WRITEFUNCTION, &take_body);
  state.set(CURLOPT_WRITEDATA, &exchange);
  state.set(CURLOPT_HEADERFUNCTION, &take_header);
  state.set(CURLOPT_HEADERDATA, &exchange);
  state.set(CURLOPT_XFERINFOFUNCTION, &look_for_cancellation);
  state.set(CURLOPT_XFERINFODATA, &exchange);
  state.set(CURLOPT_NOPROGRESS, 0L);

  const CURLcode code = curl_easy_perform(state.handle);
  if (exchange.failure) return *std::move(exchange.failure);
  if (code != CURLE_OK) {
    const std::string detail = state.detail[0] != '\0' ? state.detail.data() : curl_easy_strerror(code);
    return transport_error(code, state.handle, detail, state.options, host);
  }
  long status = 0;
  curl_easy_getinfo(state.handle, CURLINFO_RESPONSE_CODE, &status);
  exchange.response.status = static_cast<int>(status);
  return std::move(exchange.response);
}

std::string url_encode(std::string_view text) {
  constexpr std::string_view kDigits = "0123456789ABCDEF";
  std::string out;
  for (unsigned char c : text) {
    if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '_' || c == '.' || c == '~') {
      out += static_cast<char>(c);
    } else {
      out += '%';
      out += kDigits[c >> 4];
      out += kDigits[c & 15];
    }
  }
  return out;
}

}  // namespace skerry
