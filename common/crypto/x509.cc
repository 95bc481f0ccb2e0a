#include "common/crypto/x509.h"

#include <arpa/inet.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>

#include <array>
#include <cstdio>
#include <ctime>

#include "common/base/encoding_text.h"
#include "common/crypto/openssl_internal.h"
#include "common/crypto/sha256.h"

namespace skerry {
namespace {

constexpr std::size_t kMaxChain = 16;
constexpr std::size_t kMaxShownName = 200;

std::shared_ptr<X509> own(X509* certificate) { return {certificate, X509_free}; }

std::string name_text(const X509_NAME* name) {
  const openssl::Bio bio(BIO_new(BIO_s_mem()));
  const unsigned long flags = XN_FLAG_SEP_CPLUS_SPC | (ASN1_STRFLGS_RFC2253 & ~ASN1_STRFLGS_ESC_MSB);
  if (!bio || X509_NAME_print_ex(bio.get(), name, 0, flags) < 0) return "?";
  return openssl::bio_text(bio.get()).substr(0, kMaxShownName);
}

std::int64_t time_ms(const ASN1_TIME* time) {
  std::tm parts{};
  if (ASN1_TIME_to_tm(time, &parts) != 1) return 0;
  return static_cast<std::int64_t>(timegm(&parts)) * 1000;
}

std::string_view string_of(const ASN1_STRING* text) {
  return {reinterpret_cast<const char*>(ASN1_STRING_get0_data(text)), static_cast<std::size_t>(ASN1_STRING_length(text))};
}

std::string address_text(std::string_view bytes) {
  char text[INET6_ADDRSTRLEN] = "";
  if (bytes.size() == 4) inet_ntop(AF_INET, bytes.data(), text, sizeof text);
  if (bytes.size() == 16) inet_ntop(AF_INET6, bytes.data(), text, sizeof text);
  return text;
}

std::vector<std::string> alternative_names(X509* certificate, int kind) {
  using Names = std::unique_ptr<GENERAL_NAMES, openssl::Deleter<GENERAL_NAMES_free>>;
  const Names names(
      static_cast<GENERAL_NAMES*>(X509_get_ext_d2i(certificate, NID_subject_alt_name, nullptr, nullptr)));
  std::vector<std::string> found;
  for (int i = 0; names && i < sk_GENERAL_NAME_num(names.get()); ++i) {
    const GENERAL_NAME* name = sk_GENERAL_NAME_value(names.get(), i);
    if (name->type != kind) continue;
    const std::string_view value = string_of(kind == GEN_IPADD ? static_cast<const ASN1_STRING*>(name->d.iPAddress)
                                                               : static_cast<const ASN1_STRING*>(name->d.ia5));
    found.push_back(kind == GEN_IPADD ? address_text(value) : std::string(value));
  }
  return found;
}

}  // namespace

Certificate Certificate::adopt(std::shared_ptr<x509_st> handle) {
  Certificate certificate(std::move(handle));
  certificate.thumbprint_ = sha256_hex(certificate.der());
  return certificate;
}

Result<Certificate> Certificate::from_der(std::string_view der) {
  const auto* data = reinterpret_cast<const unsigned char*>(der.data());
  auto certificate = own(d2i_X509(nullptr, &data, static_cast<long>(der.size())));
  if (!certificate) return invalid_argument("damaged certificate: " + openssl::last_reason());
  return adopt(std::move(certificate));
}

Result<Certificate> Certificate::from_pem(std::string_view pem) {
  SKERRY_ASSIGN(std::vector<Certificate> chain, parse_chain(pem));
  if (chain.empty()) return invalid_argument("there is no PEM certificate in it");
  return chain.front();
}

std::string Certificate::pem() const {
  const openssl::Bio bio(BIO_new(BIO_s_mem()));
  if (!bio || PEM_write_bio_X509(bio.get(), certificate_.get()) != 1) return {};
  return openssl::bio_text(bio.get());
}

std::string Certificate::der() const { return openssl::to_der(i2d_X509, certificate_.get()); }
std::string Certificate::subject() const { return name_text(X509_get_subject_name(certificate_.get())); }
std::string Certificate::issuer() const { return name_text(X509_get_issuer_name(certificate_.get())); }

std::string Certificate::organisation() const {
  const X509_NAME* name = X509_get_subject_name(certificate_.get());
  const int index = X509_NAME_get_index_by_NID(name, NID_organizationName, -1);
  if (index < 0) return {};
  return std::string(string_of(X509_NAME_ENTRY_get_data(X509_NAME_get_entry(name, index))));
}

std::int64_t Certificate::not_before_ms() const { return time_ms(X509_get0_notBefore(certificate_.get())); }
std::int64_t Certificate::not_after_ms() const { return time_ms(X509_get0_notAfter(certificate_.get())); }
std::string Certificate::serial() const {
  return to_hex(string_of(X509_get0_serialNumber(certificate_.get())));
}

std::vector<std::string> Certificate::uris() const { return alternative_names(certificate_.get(), GEN_URI); }
std::vector<std::string> Certificate::dns_names() const { return alternative_names(certificate_.get(), GEN_DNS); }
std::vector<std::string> Certificate::ip_addresses() const { return alternative_names(certificate_.get(), GEN_IPADD); }

bool Certificate::is_ca() const { return X509_check_ca(certificate_.get()) == 1; }

bool Certificate::is_for(LeafUse use) const {
  if ((X509_get_extension_flags(certificate_.get()) & EXFLAG_XKUSAGE) == 0) return false;
  const std::uint32_t wanted = use == LeafUse::kClient ? XKU_SSL_CLIENT : XKU_SSL_SERVER;
  return (X509_get_extended_key_usage(certificate_.get()) & wanted) != 0;
}

bool Certificate::is_self_signed() const { return is_signed_by(*this); }

bool Certificate::is_signed_by(const Certificate& issuer) const {
  EVP_PKEY* key = X509_get0_pubkey(issuer.handle());
  const bool holds = key != nullptr && X509_check_issued(issuer.handle(), handle()) == X509_V_OK &&
                     X509_verify(handle(), key) == 1;
  ERR_clear_error();
  return holds;
}

Result<PublicKey> Certificate::public_key() const {
  EVP_PKEY* key = X509_get0_pubkey(certificate_.get());
  if (key == nullptr) return invalid_argument("the certificate's key cannot be read: " + openssl::last_reason());
  return PublicKey::from_der(openssl::to_der(i2d_PUBKEY, key));
}

Result<std::vector<Certificate>> parse_chain(std::string_view pem) {
  const openssl::Bio bio = openssl::read_bio(pem);
  if (!bio) return internal_error("no memory for a certificate chain");
  std::vector<Certificate> chain;
  for (;;) {
    auto certificate = own(PEM_read_bio_X509(bio.get(), nullptr, nullptr, nullptr));
    if (!certificate) {
      const unsigned long code = ERR_peek_last_error();
      const bool at_end = ERR_GET_LIB(code) == ERR_LIB_PEM && ERR_GET_REASON(code) == PEM_R_NO_START_LINE;
      if (at_end) {
        ERR_clear_error();
        return chain;
      }
      return invalid_argument("certificate " + std::to_string(chain.size() + 1) +
                              " of the chain is damaged: " + openssl::last_reason());
    }
    if (chain.size() == kMaxChain)
      return invalid_argument("the chain has more than " + std::to_string(kMaxChain) + " certificates");
    chain.push_back(Certificate::adopt(std::move(certificate)));
  }
}

std::string chain_pem(const std::vector<Certificate>& chain) {
  std::string text;
  for (const Certificate& certificate : chain) text += certificate.pem();
  return text;
}

Result<void> verify_chain(const std::vector<Certificate>& chain, const std::vector<Certificate>& anchors,
                          const std::vector<Certificate>& intermediates) {
  if (chain.empty()) return invalid_argument("there is no certificate");
  using Store = std::unique_ptr<X509_STORE, openssl::Deleter<X509_STORE_free>>;
  using Context = std::unique_ptr<X509_STORE_CTX, openssl::Deleter<X509_STORE_CTX_free>>;
  struct FreeStack {
    void operator()(STACK_OF(X509) * stack) const { sk_X509_free(stack); }
  };
  const Store store(X509_STORE_new());
  const Context context(X509_STORE_CTX_new());
  const std::unique_ptr<STACK_OF(X509), FreeStack> others(sk_X509_new_null());
  if (!store || !context || !others) return internal_error("no memory to verify a certificate chain");
  for (const Certificate& anchor : anchors) X509_STORE_add_cert(store.get(), anchor.handle());
  for (std::size_t i = 1; i < chain.size(); ++i) sk_X509_push(others.get(), chain[i].handle());
  for (const Certificate& other : intermediates) sk_X509_push(others.get(), other.handle());
  if (X509_STORE_CTX_init(context.get(), store.get(), chain.front().handle(), others.get()) != 1)
    return internal_error("cannot verify a certificate chain: " + openssl::last_reason());
  X509_STORE_CTX_set_flags(context.get(), X509_V_FLAG_NO_CHECK_TIME);
  const int verified = X509_verify_cert(context.get());
  const int error = X509_STORE_CTX_get_error(context.get());
  ERR_clear_error();
  if (verified == 1) return {};
  return invalid_argument(X509_verify_cert_error_string(error));
}

std::string format_utc(std::int64_t unix_ms) {
  const std::time_t seconds = static_cast<std::time_t>(unix_ms / 1000);
  std::tm parts{};
  char text[40] = "";
  gmtime_r(&seconds, &parts);
  std::strftime(text, sizeof text, "%Y-%m-%d %H:%M:%S UTC", &parts);
  return text;
}

std::string format_duration(std::int64_t ms) {
  struct Unit {
    std::int64_t ms;
    const char* name;
  };
  static constexpr std::array<Unit, 4> kUnits{{{86'400'000, "day"}, {3'600'000, "hour"}, {60'000, "minute"}, {1000, "second"}}};
  const std::int64_t length = ms < 0 ? -ms : ms;
  for (const Unit& unit : kUnits)
    if (length >= unit.ms || unit.ms == 1000) {
      const std::int64_t count = length / unit.ms;
      return std::to_string(count) + " " + unit.name + (count == 1 ? "" : "s");
    }
  return {};
}

}  // namespace skerry
