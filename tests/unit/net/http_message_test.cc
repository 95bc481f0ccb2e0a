#include "server/net/http_message.h"

#include <catch2/catch.hpp>

using namespace skerry::server;

namespace {

std::string range(std::string_view header, std::uint64_t size) {
  const auto parsed = parse_range(header, size);
  if (std::holds_alternative<WholeFile>(parsed)) return "whole";
  if (std::holds_alternative<NotSatisfiable>(parsed)) return "not satisfiable";
  const auto wanted = std::get<WantedRange>(parsed);
  return std::to_string(wanted.first) + "-" + std::to_string(wanted.last);
}

}  // namespace

TEST_CASE("a single range is cut to the file") {
  CHECK(range("bytes=0-9", 100) == "0-9");
  CHECK(range("Bytes= 10- ", 100) == "10-99");
  CHECK(range("bytes=90-1000", 100) == "90-99");
  CHECK(range("bytes=-10", 100) == "90-99");
  CHECK(range("bytes=-1000", 100) == "0-99");
  CHECK(range("bytes=99-99", 100) == "99-99");
}

TEST_CASE("a range outside of the file cannot be satisfied") {
  CHECK(range("bytes=100-", 100) == "not satisfiable");
  CHECK(range("bytes=-0", 100) == "not satisfiable");
  CHECK(range("bytes=0-", 0) == "not satisfiable");
  CHECK(range("bytes=-5", 0) == "not satisfiable");
}

TEST_CASE("what is not one range of bytes is ignored") {
  for (const char* header : {"", "bytes=", "bytes=-", "bytes=9-0", "bytes=a-b", "bytes=0-1,3-4", "lines=0-1", "bytes=1",
                             "bytes=+1-2", "bytes=99999999999999999999-", "bytes=0x1-2"}) {
    INFO(header);
    CHECK(range(header, 100) == "whole");
  }
}

TEST_CASE("an entity tag is found in a list, weak or strong, and by the star") {
  CHECK(names_tag("\"a\"", "\"a\""));
  CHECK(names_tag("\"b\", W/\"a\"", "\"a\""));
  CHECK(names_tag(" * ", "\"a\""));
  CHECK_FALSE(names_tag("\"b\",\"c\"", "\"a\""));
  CHECK_FALSE(names_tag("a", "\"a\""));
}

TEST_CASE("a head has its date, its length, the security headers, and no header that would split it") {
  const std::string head =
      write_head({200, "text/plain", 3, false, 1'795'247'147}, {{"X-Good", "yes"}, {"X-Bad", "a\r\nSet-Cookie: x"}});
  CHECK(head.find("HTTP/1.1 200 OK\r\nDate: Sat, 21 Nov 2026 07:45:47 GMT\r\n") == 0);
  CHECK(head.find("Content-Length: 3\r\n") != std::string::npos);
  CHECK(head.find("X-Good: yes\r\n") != std::string::npos);
  CHECK(head.find("Set-Cookie") == std::string::npos);
  CHECK(head.find("X-Content-Type-Options: nosniff\r\n") != std::string::npos);
  CHECK(head.substr(head.size() - 4) == "\r\n\r\n");
  const std::string own = write_head({200, "", std::nullopt, true, 0}, {{"cache-control", "max-age=5"}});
  CHECK(own.find("no-store") == std::string::npos);
  CHECK(own.find("Connection: close") != std::string::npos);
}

TEST_CASE("a number is digits alone and fits") {
  CHECK(parse_number("18446744073709551615") == UINT64_MAX);
  for (const char* text : {"", "-1", "+1", " 1", "1 ", "1.0", "18446744073709551616"})
    CHECK_FALSE(parse_number(text).has_value());
}
