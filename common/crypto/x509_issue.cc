// Making certificates and signing requests; x509.cc reads them.
#include <arpa/inet.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>

#include <algorithm>

#include "common/crypto/openssl_internal.h"
#include "common/crypto/random.h"
#include "common/crypto/x509.h"

namespace skerry {
namespace {

constexpr std::size_t kMaxRequest = 16 * 1024;

using Names = std::unique_ptr<GENERAL_NAMES, openssl::Deleter<GENERAL_NAMES_free>>;
using Request = std::unique_ptr<X509_REQ, openssl::Deleter<X509_REQ_free>>;

Error openssl_error(const std::string& what) { return internal_error("cannot " + what + ": " + openssl::last_reason()); }

bool add_entry(X509_NAME* name, const char* field, const std::string& value) {
  return X509_NAME_add_entry_by_txt(name, field, MBSTRING_UTF8, reinterpret_cast<const unsigned char*>(value.data()),
                                    static_cast<int>(value.size()), -1, 0) == 1;
}

// A positive serial number with 126 random bits.
bool set_random_serial(X509* certificate) {
  auto bytes = random_secret(16);
  if (!bytes.ok()) return false;
  (*bytes)[0] = static_cast<char>(((*bytes)[0] & 0x3f) | 0x40);
  using Number = std::unique_ptr<BIGNUM, openssl::Deleter<BN_free>>;
  const Number number(BN_bin2bn(reinterpret_cast<const unsigned char*>(bytes->data()), 16, nullptr));
  return number && BN_to_ASN1_INTEGER(number.get(), X509_get_serialNumber(certificate)) != nullptr;
}

bool add_extension(X509* certificate, X509* issuer, int nid, const char* value) {
  X509V3_CTX context;
  X509V3_set_ctx_nodb(&context);
  X509V3_set_ctx(&context, issuer, certificate, nullptr, nullptr, 0);
  X509_EXTENSION* extension = X509V3_EXT_conf_nid(nullptr, &context, nid, value);
  const bool added = extension != nullptr && X509_add_ext(certificate, extension, -1) == 1;
  X509_EXTENSION_free(extension);
  return added;
}

struct Draft {
  const PublicKey& key;
  std::string organisation;
  std::string common_name;
  std::int64_t now_ms;
  std::int64_t lifetime_ms;
};

// A certificate with everything but extensions and signature. `issuer` is null for a root.
std::shared_ptr<X509> make_draft(const Draft& draft, const Certificate* issuer) {
  std::shared_ptr<X509> certificate(X509_new(), X509_free);
  if (!certificate) return nullptr;
  X509* raw = certificate.get();
  std::int64_t end_ms = draft.now_ms + draft.lifetime_ms;
  if (issuer != nullptr) end_ms = std::min(end_ms, issuer->not_after_ms());
  std::int64_t begin_ms = draft.now_ms - kBackdateMs;
  if (issuer != nullptr) begin_ms = std::max(begin_ms, issuer->not_before_ms());
  X509_NAME* name = X509_get_subject_name(raw);
  const bool made = X509_set_version(raw, X509_VERSION_3) == 1 && set_random_serial(raw) &&
                    ASN1_TIME_set(X509_getm_notBefore(raw), static_cast<time_t>(begin_ms / 1000)) != nullptr &&
                    ASN1_TIME_set(X509_getm_notAfter(raw), static_cast<time_t>(end_ms / 1000)) != nullptr &&
                    (draft.organisation.empty() || add_entry(name, "O", draft.organisation)) &&
                    add_entry(name, "CN", draft.common_name) &&
                    X509_set_issuer_name(raw, issuer != nullptr ? X509_get_subject_name(issuer->handle()) : name) == 1 &&
                    X509_set_pubkey(raw, draft.key.handle()) == 1;
  return made ? certificate : nullptr;
}

Result<Certificate> sign(std::shared_ptr<X509> draft, const PrivateKey& key) {
  if (X509_sign(draft.get(), key.handle(), EVP_sha256()) == 0) return openssl_error("sign a certificate");
  return Certificate::adopt(std::move(draft));
}

bool is_host_name(std::string_view name) {
  return !name.empty() && name.size() <= 253 && name.front() != '.' && name.front() != '-' &&
         std::all_of(name.begin(), name.end(), [](char c) {
           return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' || c == '-';
         });
}

bool push(GENERAL_NAMES* names, int kind, ASN1_STRING* value) {
  GENERAL_NAME* name = GENERAL_NAME_new();
  if (value == nullptr || name == nullptr) {
    ASN1_STRING_free(value);
    GENERAL_NAME_free(name);
    return false;
  }
  GENERAL_NAME_set0_value(name, kind, value);
  return sk_GENERAL_NAME_push(names, name) > 0;
}

ASN1_STRING* make_string(int type, const void* data, std::size_t size) {
  ASN1_STRING* text = ASN1_STRING_type_new(type);
  if (text != nullptr) ASN1_STRING_set(text, data, static_cast<int>(size));
  return text;
}

Result<Names> alternative_names(const LeafOptions& options) {
  Names names(GENERAL_NAMES_new());
  bool pushed = names != nullptr;
  if (!options.uri.empty())
    pushed = pushed && push(names.get(), GEN_URI, make_string(V_ASN1_IA5STRING, options.uri.data(), options.uri.size()));
  for (const std::string& host : options.dns_names) {
    if (!is_host_name(host)) return invalid_argument("'" + host + "' is not a host name");
    pushed = pushed && push(names.get(), GEN_DNS, make_string(V_ASN1_IA5STRING, host.data(), host.size()));
  }
  for (const std::string& address : options.ip_addresses) {
    unsigned char bytes[16];
    std::size_t size = 0;
    if (inet_pton(AF_INET, address.c_str(), bytes) == 1) size = 4;
    if (inet_pton(AF_INET6, address.c_str(), bytes) == 1) size = 16;
    if (size == 0) return invalid_argument("'" + address + "' is not an IP address");
    pushed = pushed && push(names.get(), GEN_IPADD, make_string(V_ASN1_OCTET_STRING, bytes, size));
  }
  if (!pushed) return openssl_error("make a certificate's alternative names");
  return names;
}

}  // namespace

Result<Certificate> make_root(const PrivateKey& key, const std::string& organisation, const std::string& common_name,
                              std::int64_t now_ms, std::int64_t lifetime_ms) {
  const PublicKey subject = key.public_key();
  auto draft = make_draft({subject, organisation, common_name, now_ms, lifetime_ms}, nullptr);
  if (!draft || !add_extension(draft.get(), draft.get(), NID_basic_constraints, "critical,CA:TRUE,pathlen:1") ||
      !add_extension(draft.get(), draft.get(), NID_key_usage, "critical,keyCertSign,cRLSign") ||
      !add_extension(draft.get(), draft.get(), NID_subject_key_identifier, "hash"))
    return openssl_error("make a root certificate");
  return sign(std::move(draft), key);
}

Result<Certificate> make_issuing_ca(const PublicKey& key, const std::string& common_name, const Certificate& root,
                                    const PrivateKey& root_key, std::int64_t now_ms, std::int64_t lifetime_ms) {
  auto draft = make_draft({key, root.organisation(), common_name, now_ms, lifetime_ms}, &root);
  if (!draft || !add_extension(draft.get(), root.handle(), NID_basic_constraints, "critical,CA:TRUE,pathlen:0") ||
      !add_extension(draft.get(), root.handle(), NID_key_usage, "critical,keyCertSign,cRLSign") ||
      !add_extension(draft.get(), root.handle(), NID_subject_key_identifier, "hash") ||
      !add_extension(draft.get(), root.handle(), NID_authority_key_identifier, "keyid:always"))
    return openssl_error("make an issuing certificate");
  return sign(std::move(draft), root_key);
}

Result<Certificate> make_leaf(const PublicKey& key, const LeafOptions& options, const Certificate& issuing,
                              const PrivateKey& issuing_key) {
  SKERRY_ASSIGN(const Names names, alternative_names(options));
  auto draft = make_draft({key, issuing.organisation(), options.common_name, options.now_ms, options.lifetime_ms}, &issuing);
  const char* usage = options.use == LeafUse::kServer ? "serverAuth" : "clientAuth";
  if (!draft || !add_extension(draft.get(), issuing.handle(), NID_basic_constraints, "critical,CA:FALSE") ||
      !add_extension(draft.get(), issuing.handle(), NID_key_usage, "critical,digitalSignature") ||
      !add_extension(draft.get(), issuing.handle(), NID_ext_key_usage, usage) ||
      !add_extension(draft.get(), issuing.handle(), NID_subject_key_identifier, "hash") ||
      !add_extension(draft.get(), issuing.handle(), NID_authority_key_identifier, "keyid:always") ||
      (sk_GENERAL_NAME_num(names.get()) > 0 &&
       X509_add1_ext_i2d(draft.get(), NID_subject_alt_name, names.get(), 0, X509V3_ADD_DEFAULT) != 1))
    return openssl_error("make a certificate");
  return sign(std::move(draft), issuing_key);
}

Result<std::string> make_signing_request(const PrivateKey& key, const std::string& common_name) {
  const Request request(X509_REQ_new());
  const openssl::Bio bio(BIO_new(BIO_s_mem()));
  if (!request || !bio || X509_REQ_set_version(request.get(), X509_REQ_VERSION_1) != 1 ||
      !add_entry(X509_REQ_get_subject_name(request.get()), "CN", common_name) ||
      X509_REQ_set_pubkey(request.get(), key.handle()) != 1 ||
      X509_REQ_sign(request.get(), key.handle(), EVP_sha256()) == 0 ||
      PEM_write_bio_X509_REQ(bio.get(), request.get()) != 1)
    return openssl_error("make a signing request");
  return openssl::bio_text(bio.get());
}

Result<PublicKey> check_signing_request(std::string_view pem) {
  if (pem.size() > kMaxRequest)
    return invalid_argument("the signing request has " + std::to_string(pem.size()) + " bytes, at most " +
                            std::to_string(kMaxRequest) + " are read");
  const openssl::Bio bio = openssl::read_bio(pem);
  const Request request(bio ? PEM_read_bio_X509_REQ(bio.get(), nullptr, nullptr, nullptr) : nullptr);
  ERR_clear_error();
  if (!request) return invalid_argument("there is no PEM signing request (CERTIFICATE REQUEST), or it is damaged");
  EVP_PKEY* key = X509_REQ_get0_pubkey(request.get());
  if (key == nullptr) return invalid_argument("the signing request's key cannot be read: " + openssl::last_reason());
  auto subject = PublicKey::from_der(openssl::to_der(i2d_PUBKEY, key));
  if (!subject.ok()) return with_context(std::move(subject).error(), "signing request");
  if (X509_REQ_verify(request.get(), key) != 1) {
    ERR_clear_error();
    return invalid_argument("the signing request's signature is not its key's: the sender does not hold that key");
  }
  return subject;
}

}  // namespace skerry
