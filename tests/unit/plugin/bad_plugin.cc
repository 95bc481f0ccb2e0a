// Shared objects that are no plug-in, each in its own way; what is defined says which.
#include <cstddef>

#include <time.h>

#include "strategies/sdk/plugin.h"

namespace {

int describe(const skerry_answer* answer) {
  static constexpr char kText[] =
#ifdef BAD_DESCRIPTION
      R"({"name": "bad", "version": "1", "rules": [{"name": "Bad Rule", "meaning": "x", "parameters": []}]})";
#else
      R"({"name": "bad", "version": "1", "rules": [{"name": "bad", "meaning": "x", "parameters": []}]})";
#endif
  answer->text(answer->context, kText, sizeof kText - 1);
  return SKERRY_DONE;
}

int make(skerry_text, void**, const skerry_answer*) { return SKERRY_FAILED; }
int next(void*, skerry_text, const skerry_table*, std::size_t, void**, const skerry_answer*) { return SKERRY_FAILED; }
int add(void*, const skerry_block*, double*, const skerry_answer*) { return SKERRY_FAILED; }
[[maybe_unused]] int reduce(void*, const skerry_block*, float*, float* const*, const skerry_answer*) { return SKERRY_FAILED; }
void free_nothing(void*) {}

[[maybe_unused]] const skerry_plugin kPlugin = {
#ifdef SHORT_TABLE
    sizeof(skerry_plugin) - 8,
#else
    sizeof(skerry_plugin),
#endif
#ifdef OTHER_MAJOR
    SKERRY_PLUGIN_MAJOR + 1,
#else
    SKERRY_PLUGIN_MAJOR,
#endif
#ifdef NEWER_MINOR
    SKERRY_PLUGIN_MINOR + 1,
#else
    SKERRY_PLUGIN_MINOR,
#endif
    0,
    describe,
    make,
    next,
    add,
#ifdef NULL_FUNCTION
    nullptr,
#else
    reduce,
#endif
    free_nothing,
    free_nothing};

}  // namespace

#if defined(HANGS_AT_LOAD)
__attribute__((constructor)) static void hang() {
  for (;;) {
    const timespec second{1, 0};
    nanosleep(&second, nullptr);
  }
}
#elif defined(CRASHES_AT_LOAD)
__attribute__((constructor)) static void crash() { __builtin_trap(); }
#elif defined(UNDEFINED)
void nowhere();
__attribute__((constructor)) static void call() { nowhere(); }
#endif

#ifndef NO_ENTRY
extern "C" __attribute__((visibility("default"))) const skerry_plugin* skerry_plugin_entry() {
#ifdef NULL_TABLE
  return nullptr;
#else
  return &kPlugin;
#endif
}
#endif
