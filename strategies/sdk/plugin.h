/* The narrow interface between a plug-in and the coordinator's helper process: plain C, so that neither has to be built
 * with the other's compiler. Small data travel as JSON text, tensors as spans of floats.
 *
 * A plug-in is a shared object that exports `skerry_plugin_entry`. Rules written in C++ do not see any of this: they use
 * strategies/sdk/plugin.hpp, which implements it.
 *
 * Version rule: a plug-in is loaded where its major version is the host's and its minor version is not newer. A new minor
 * version only appends members to structs; each struct begins with its size, so that both sides know which members the other
 * one has.
 *
 * A plug-in runs in a process of its own: no network, no files to write, no other programs, a limit of memory, and a deadline for
 * every call. Whatever it does wrong ends one exchange with a message, never the coordinator. */
#ifndef SKERRY_STRATEGIES_SDK_PLUGIN_H_
#define SKERRY_STRATEGIES_SDK_PLUGIN_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define SKERRY_PLUGIN_MAJOR 1
#define SKERRY_PLUGIN_MINOR 0

/* UTF-8, not ended by a zero. */
typedef struct skerry_text {
  const char* data;
  size_t size;
} skerry_text;

/* Where a function puts its answer. Each call of `text` or `numbers` appends; what was given is copied. */
typedef struct skerry_answer {
  uint32_t size; /* sizeof(skerry_answer) */
  void* context;
  void (*text)(void* context, const char* data, size_t size);
  void (*numbers)(void* context, const double* data, size_t count);
} skerry_answer;

/* A row-major table of sums. */
typedef struct skerry_table {
  uint32_t size; /* sizeof(skerry_table) */
  uint64_t rows;
  uint64_t columns;
  const double* values;
} skerry_table;

/* A piece of a fragment: elements [first, first + count). */
typedef struct skerry_block {
  uint32_t size; /* sizeof(skerry_block) */
  skerry_text fragment;
  uint64_t first;
  uint64_t count;
  uint64_t tensor; /* index into the cohort's tensors, for a rule that needs tensors; else 0 */
  uint64_t update_count;
  const float* const* updates; /* update_count pointers to `count` values: the outer gradients, old - new */
  const float* base;           /* the fragment's current values */
  uint64_t state_count;
  const float* const* state; /* state_count pointers to `count` values: the rule's state vectors, before */
} skerry_block;

/* What a plug-in is. A function returns 0 when it is done; otherwise the text it answered says what was wrong:
 * SKERRY_REFUSED where the input cannot be used (a sentence for the operator), SKERRY_FAILED for anything else.
 * `add` and `reduce` are called on several threads at once, with different tables and spans. */
enum { SKERRY_DONE = 0, SKERRY_REFUSED = 1, SKERRY_FAILED = 2 };

typedef struct skerry_plugin {
  uint32_t size; /* sizeof(skerry_plugin) */
  uint32_t major;
  uint32_t minor;
  uint32_t reserved; /* 0 */

  /* Answers {"name", "version", "rules": [{"name", "meaning", "parameters": [{"name", "meaning", "default", and for numbers
   * "minimum", "maximum", "above_minimum", "below_maximum", "whole", for texts "choices"}]}]}. */
  int (*describe)(const skerry_answer* answer);

  /* Makes a rule from {"name", "parameters": {…}}, every parameter given. Answers {"needs": {"individual_updates", "linear",
   * "all_clients", "tensors", "rebased", "partial_updates", "nodes", "metrics", "minimum_updates", "because",
   * "maximum_updates"}, "state_vectors": [names]}; what is left out is false, empty or unlimited. `*rule` is given back to
   * free_rule. */
  int (*make)(skerry_text part, void** rule, const skerry_answer* answer);

  /* The next pass over a cohort, given the tables of the statistics passes so far:
   *   {"pass": "statistics", "rows": R, "columns": C}   `add` is called for each block, then `next` again
   *   {"pass": "linear"}                                with the coefficients as numbers; the last pass
   *   {"pass": "values"}                                `reduce` is called for each block; the last pass
   * `cohort` is {"contributions": [{"examples", "tokens", "steps", "factor", "node", "metrics": [numbers]}], "tensors":
   * [{"name", "first", "count"}], "seed", "step"}. `*pass` is given back to free_pass. */
  int (*next)(void* rule, skerry_text cohort, const skerry_table* tables, size_t table_count, void** pass,
              const skerry_answer* answer);

  /* Adds a block's share to a table of rows * columns sums. */
  int (*add)(void* pass, const skerry_block* block, double* sums, const skerry_answer* answer);

  /* Writes a block's outer gradient, and its state vectors after this exchange. */
  int (*reduce)(void* pass, const skerry_block* block, float* out, float* const* state, const skerry_answer* answer);

  void (*free_pass)(void* pass);
  void (*free_rule)(void* rule);
} skerry_plugin;

/* What the shared object exports under the name skerry_plugin_entry. The struct stays valid as long as the object is loaded. */
typedef const skerry_plugin* (*skerry_plugin_entry_function)(void);

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* SKERRY_STRATEGIES_SDK_PLUGIN_H_ */
