// Every outer optimizer against tests/oracle/outer.py, which walks in float64 from the papers' own formulas.
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>

#include <catch2/catch.hpp>

#include "tests/unit/outer/walker.h"

namespace skerry::strategies {
namespace {

constexpr std::size_t kCount = 257;
constexpr unsigned kSteps = 12;

std::string as_json(const Part& part) {
  std::string out = "{\"optimizer\": \"" + part.name + "\", \"count\": " + std::to_string(kCount);
  for (const auto& [name, value] : part.parameters) {
    out += ", \"" + name + "\": ";
    char number[40];
    if (const auto* as_number = std::get_if<double>(&value)) {
      std::snprintf(number, sizeof number, "%.17g", *as_number);
      out += number;
    } else if (const auto* flag = std::get_if<bool>(&value)) {
      out += *flag ? "true" : "false";
    } else {
      out += '"' + std::get<std::string>(value) + '"';
    }
  }
  return out + "}";
}

constexpr const char* kPython = "/usr/bin/python3";

bool have_numpy() { return std::system((std::string(kPython) + " -c 'import numpy' 2>/dev/null").c_str()) == 0; }

/// The model after each step, as the oracle walks.
std::vector<double> oracle(const Part& part, const std::vector<float>& gradients) {
  char file[] = "/tmp/skerry-gradients-XXXXXX";
  const int descriptor = ::mkstemp(file);
  REQUIRE(descriptor >= 0);
  const std::size_t bytes = gradients.size() * sizeof(float);
  REQUIRE(::write(descriptor, gradients.data(), bytes) == static_cast<ssize_t>(bytes));
  ::close(descriptor);
  const char* source = std::getenv("SKERRY_SOURCE");
  REQUIRE(source != nullptr);
  const std::string command =
      std::string(kPython) + " '" + source + "/tests/oracle/outer.py' '" + as_json(part) + "' < '" + file + "'";
  std::FILE* pipe = ::popen(command.c_str(), "r");
  REQUIRE(pipe != nullptr);
  std::vector<double> values(gradients.size() + 1);
  values.resize(std::fread(values.data(), sizeof(double), values.size(), pipe));
  REQUIRE(::pclose(pipe) == 0);
  ::unlink(file);
  REQUIRE(values.size() == gradients.size());
  return values;
}

/// The step that the model took, from the oracle's models.
double oracle_change(const std::vector<double>& models, unsigned step, std::size_t i) {
  return models[step * kCount + i] - (step == 0 ? 0.0 : models[(step - 1) * kCount + i]);
}

}  // namespace

TEST_CASE("every optimizer walks as the oracle does in float64") {
  if (!have_numpy()) {
    WARN("skipped: Debian's Python has no NumPy (python3-numpy)");
    return;
  }
  using Form = NesterovOptions::Form;
  using Kind = Schedule::Kind;
  const Schedule cosine{.kind = Kind::kCosine, .warmup_steps = 3, .schedule_steps = 10, .final_fraction = 0.1};
  const Schedule linear{.kind = Kind::kLinear, .schedule_steps = 8};
  const Schedule stairs{.kind = Kind::kStep, .step_every = 4, .step_factor = 0.3};
  std::vector<Part> parts = {
      sgd({.learning_rate = 0.7}),
      sgd({.schedule = {.kind = Kind::kInverseSqrt, .warmup_steps = 2}}),
      momentum({.learning_rate = 0.9, .momentum = 0.8}),
      momentum({.schedule = linear}),
      nesterov(),
      nesterov({.schedule = cosine}),
      nesterov({.form = Form::kFedMom}),
      nesterov({.form = Form::kFedMom, .schedule = stairs}),
      delayed_nesterov(),
      delayed_nesterov({.delay = 3, .carry = 0.25, .schedule = cosine}),
      delayed_nesterov({.delay = 1}),
      adagrad(),
      adagrad({.initial_accumulator = 1e-6, .schedule = linear}),
      adam(),
      adam({.epsilon = 1e-8, .bias_correction = true}),
      adam({.initial_accumulator = 1e-6, .schedule = cosine}),
      yogi(),
      yogi({.bias_correction = true, .initial_accumulator = 1e-6}),
      yogi({.beta1 = 0, .beta2 = 0.5, .schedule = stairs}),
  };
  std::vector<float> gradients;
  for (unsigned step = 0; step < kSteps; ++step)
    for (const float value : some_values(kCount, step + 1)) gradients.push_back(value);
  for (const Part& part : parts) {
    // What the oracle must not guess: every default.
    const auto resolved = resolve(part, "outer", outer_catalogue());
    REQUIRE(resolved.ok());
    const auto models = oracle(*resolved, gradients);
    Walker walker(part, std::vector<float>(kCount));
    // State is kept in float32 and rounded in each step, so a sum of steps may be off by that much of its largest term.
    std::vector<double> scale(kCount, 1e-30);
    for (unsigned step = 0; step < kSteps; ++step) {
      const auto change = walker.step({gradients.begin() + step * kCount, gradients.begin() + (step + 1) * kCount});
      for (std::size_t i = 0; i < kCount; ++i) {
        const double expected = oracle_change(models, step, i);
        scale[i] = std::max(scale[i], std::abs(expected));
        INFO(as_json(*resolved) << " step " << step + 1 << " value " << i << ": " << change[i] << ", oracle "
                                << expected);
        REQUIRE(std::abs(change[i] - expected) <= 1e-6 * scale[i]);
      }
    }
  }
}

}  // namespace skerry::strategies
