#include "server/net/http_router.h"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cassert>

namespace skerry::server {
namespace {

std::string_view lookup(const std::map<std::string, std::string, std::less<>>& map, std::string_view name) {
  const auto found = map.find(name);
  return found == map.end() ? std::string_view{} : std::string_view(found->second);
}

int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

// "/a/b" → {"a", "b"}; "/" → {""}.
std::vector<std::string_view> split(std::string_view path) {
  std::vector<std::string_view> parts;
  path.remove_prefix(1);
  for (;;) {
    const std::size_t slash = path.find('/');
    parts.push_back(path.substr(0, slash));
    if (slash == std::string_view::npos) return parts;
    path.remove_prefix(slash + 1);
  }
}

bool is_param(std::string_view segment) {
  return segment.size() > 2 && segment.front() == '{' && segment.back() == '}';
}
bool is_rest(std::string_view segment) {
  return is_param(segment) && segment.size() > 5 && segment.substr(segment.size() - 4) == "...}";
}

using Params = std::map<std::string, std::string, std::less<>>;

// How well a pattern fits, one letter a segment: 'c' literal, 'b' {name}, 'a' the rest; larger is better. Empty: not at
// all.
std::string fit(std::string_view pattern, std::string_view path, const std::vector<std::string_view>& segments,
                Params& params) {
  const auto wanted = split(pattern);
  std::string score;
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    if (i >= segments.size()) return "";
    if (is_rest(wanted[i])) {
      const auto rest = path.substr(static_cast<std::size_t>(segments[i].data() - path.data()));
      auto value = percent_decode(rest);
      if (rest.empty() || !value) return "";
      params[std::string(wanted[i].substr(1, wanted[i].size() - 5))] = *std::move(value);
      return score + 'a';
    }
    auto value = percent_decode(segments[i]);
    if (!value) return "";
    if (is_param(wanted[i])) {
      if (value->empty()) return "";
      params[std::string(wanted[i].substr(1, wanted[i].size() - 2))] = *std::move(value);
      score += 'b';
    } else if (*value == wanted[i]) {
      score += 'c';
    } else {
      return "";
    }
  }
  return wanted.size() == segments.size() ? score : "";
}

}  // namespace

std::string_view HttpRequest::param(std::string_view name) const { return lookup(params, name); }
std::string_view HttpRequest::query_value(std::string_view name) const { return lookup(query, name); }
std::string_view HttpRequest::header(std::string_view name) const { return lookup(headers, name); }

HttpResponse HttpResponse::json(const nlohmann::json& value, int status) {
  // A name from outside may hold bytes that are not UTF-8: replace them rather than throw.
  return {status, "application/json", value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace), {}};
}

HttpResponse HttpResponse::text(std::string body, std::string content_type, int status) {
  return {status, std::move(content_type), std::move(body), {}};
}

HttpResponse HttpResponse::error(const Error& error) {
  return json({{"error", {{"code", code_name(error.code)}, {"message", error.message}}}}, http_status(error.code));
}

int http_status(Code code) {
  switch (code) {
    case Code::kOk:
      return 200;
    case Code::kInvalidArgument:
    case Code::kOutOfRange:
      return 400;
    case Code::kUnauthenticated:
      return 401;
    case Code::kPermissionDenied:
      return 403;
    case Code::kNotFound:
      return 404;
    case Code::kAlreadyExists:
    case Code::kAborted:
    case Code::kFailedPrecondition:
      return 409;
    case Code::kDataLoss:
      return 422;
    case Code::kResourceExhausted:
      return 429;
    case Code::kUnimplemented:
      return 501;
    case Code::kUnavailable:
      return 503;
    case Code::kDeadlineExceeded:
      return 504;
    case Code::kCancelled:
    case Code::kUnknown:
    case Code::kInternal:
      break;
  }
  return 500;
}

HttpRouter& HttpRouter::add(std::string_view method, std::string_view pattern, HttpHandler handler,
                            RouteOptions options) {
  assert(!pattern.empty() && pattern.front() == '/' && handler);
  assert(std::none_of(routes_.begin(), routes_.end(),
                      [&](const Route& route) { return route.method == method && route.pattern == pattern; }));
  routes_.push_back({std::string(method), std::string(pattern), std::move(handler), options});
  return *this;
}

std::variant<HttpRouter::Match, HttpRouter::NoMatch> HttpRouter::find(std::string_view method,
                                                                      std::string_view path) const {
  NoMatch none;
  if (path.empty() || path.front() != '/') return none;
  const auto segments = split(path);
  Match best;
  std::string best_score;
  for (const Route& route : routes_) {
    Params params;
    const std::string score = fit(route.pattern, path, segments, params);
    if (score.empty()) continue;
    if (std::find(none.allow.begin(), none.allow.end(), route.method) == none.allow.end()) {
      none.allow.push_back(route.method);
      if (route.method == "GET") none.allow.push_back("HEAD");
    }
    const bool wanted = route.method == method || (method == "HEAD" && route.method == "GET");
    if (wanted && score > best_score) {
      best_score = score;
      best = {&route, std::move(params)};
    }
  }
  if (best.route) return best;
  std::sort(none.allow.begin(), none.allow.end());
  return none;
}

std::optional<std::string> percent_decode(std::string_view text, bool plus_is_space) {
  std::string out;
  out.reserve(text.size());
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '%') {
      if (i + 2 >= text.size()) return std::nullopt;
      const int high = hex_digit(text[i + 1]);
      const int low = hex_digit(text[i + 2]);
      if (high < 0 || low < 0 || high + low == 0) return std::nullopt;
      out += static_cast<char>(high << 4 | low);
      i += 2;
    } else {
      out += plus_is_space && text[i] == '+' ? ' ' : text[i];
    }
  }
  return out;
}

std::optional<Params> parse_query(std::string_view text) {
  Params query;
  while (!text.empty()) {
    const std::size_t end = text.find('&');
    const std::string_view pair = text.substr(0, end);
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
    if (pair.empty()) continue;
    const std::size_t equals = pair.find('=');
    auto name = percent_decode(pair.substr(0, equals), true);
    auto value = percent_decode(equals == std::string_view::npos ? std::string_view{} : pair.substr(equals + 1), true);
    if (!name || !value) return std::nullopt;
    query[*std::move(name)] = *std::move(value);
  }
  return query;
}

}  // namespace skerry::server
