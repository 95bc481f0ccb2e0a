// What `skerry` prints and how it ends.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <string>

#include <catch2/catch.hpp>

struct Printed {
  int code = 0;
  std::string text;
};

/// Runs the built `skerry` with these arguments through the shell, stderr with stdout.
inline Printed skerry_prints(const std::string& arguments) {
  const char* bin = std::getenv("SKERRY_BIN");
  REQUIRE(bin != nullptr);
  std::FILE* pipe = ::popen((std::string(bin) + "/skerry " + arguments + " 2>&1").c_str(), "r");
  REQUIRE(pipe != nullptr);
  Printed printed;
  char piece[4096];
  for (std::size_t count; (count = std::fread(piece, 1, sizeof piece, pipe)) > 0;) printed.text.append(piece, count);
  printed.code = WEXITSTATUS(::pclose(pipe));
  return printed;
}

inline bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }
