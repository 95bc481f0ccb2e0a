#include "common/base/encoding_text.h"

#include <catch2/catch.hpp>

using namespace skerry;

TEST_CASE("hexadecimal goes both ways, whatever the case") {
  CHECK(to_hex(std::string_view("\x00\xff\x1a", 3)) == "00ff1a");
  CHECK(*from_hex("00FF1a") == std::string("\x00\xff\x1a", 3));
  CHECK(from_hex("")->empty());
}

TEST_CASE("text that is no hexadecimal is refused with the position") {
  CHECK(from_hex("abc").error().message.find("odd length, 3") != std::string::npos);
  CHECK(from_hex("ab0g").error().message.find("position 3") != std::string::npos);
}

TEST_CASE("base64url agrees with RFC 4648's examples, without padding") {
  CHECK(to_base64url("") == "");
  CHECK(to_base64url("f") == "Zg");
  CHECK(to_base64url("fo") == "Zm8");
  CHECK(to_base64url("foo") == "Zm9v");
  CHECK(to_base64url("foobar") == "Zm9vYmFy");
  CHECK(to_base64url("\xfb\xff") == "-_8");
  for (const char* text : {"", "f", "fo", "foo", "foob", "fooba", "foobar"})
    CHECK(*from_base64url(to_base64url(text)) == text);
}

TEST_CASE("a byte string has exactly one base64url spelling") {
  CHECK_FALSE(from_base64url("Zh").ok());   // bits that would be lost
  CHECK_FALSE(from_base64url("Zg==").ok());  // padding
  CHECK_FALSE(from_base64url("Zm9+").ok());  // the other alphabet
  CHECK_FALSE(from_base64url("Z").ok());
}

TEST_CASE("text from outside becomes one line that is cut between characters and steers no terminal") {
  CHECK(one_line("two\nlines \x1b[31m", 100) == "two?lines ?[31m");
  CHECK(one_line("abc", 3) == "abc");
  CHECK(one_line("abcd", 3) == "abc...");
  CHECK(one_line("a\u00e9\u00e9", 4) == "a\u00e9...");
  CHECK(one_line("", 0).empty());
}
