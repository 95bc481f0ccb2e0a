// The holder's data sets: what each is, where it lies, how it is divided. Nothing in here leaves but a summary.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/result.h"

namespace skerry::client {

struct DataSet {
  std::string name;         ///< [a-z0-9][a-z0-9-_]{0,62}
  std::string kind;         ///< "text", "jsonl", "tokens", "idx", "csv"
  std::string path;         ///< absolute
  std::string schema_json;  ///< canonical JSON, as docs/trainer-protocol.md describes it for the kind
  std::string indices;      ///< file with the rows that belong to the set; empty: all
  double holdout = 0.1;     ///< the last part of the set, in [0, 1)
  std::uint64_t total = 0;  ///< examples; of text: bytes; of jsonl: bytes of text; of tokens: tokens
  std::uint64_t files = 0;
  std::int64_t checked_ms = 0;  ///< Unix time of the inspection

  /// A set of text, of whichever kind.
  bool is_text() const { return kind == "text" || kind == "jsonl" || kind == "tokens"; }

  /// Examples per split ("train", "holdout"). Of text: windows of `context` tokens, or `total` divided where `context` is 0.
  /// How many tokens a text will have is not known before a trainer has cut it: where tokens are not `bytes` each is taken
  /// to stand for four of them.
  std::map<std::string, std::uint64_t> examples(std::uint64_t context = 0, bool bytes = true) const;

  /// The `splits` member of the trainer's open message.
  std::string splits_json() const;
};

/// What a holder says of a new set; the rest is found out by looking at the data.
struct DataSetRequest {
  std::string name;
  std::string kind;
  std::string path;
  double holdout = 0.1;
  std::string schema_json;  ///< empty: found out where the data says it (csv: the last column is the label; jsonl: "text")
  std::string indices;
};

/// Looks at every byte that decides whether a trainer can use the data: headers, counts, labels, numbers.
/// INVALID_ARGUMENT, NOT_FOUND or PERMISSION_DENIED, naming the file and the place in it.
Result<DataSet> inspect_data_set(const DataSetRequest& request, std::int64_t now_ms);

/// Looks again at a set that is known. FAILED_PRECONDITION where it is no longer what the catalogue says, with both values.
Result<DataSet> check_data_set(const DataSet& known, std::int64_t now_ms);

/// catalogue.json in the client's home.
class Catalogue {
 public:
  /// An absent file is an empty catalogue. DATA_LOSS where it cannot be understood.
  static Result<Catalogue> load(const std::string& path);
  Result<void> save() const;

  const std::vector<DataSet>& sets() const { return sets_; }
  const DataSet* find(std::string_view name) const;
  /// ALREADY_EXISTS if the name is taken.
  Result<void> add(DataSet set);
  /// Replaces the set of the same name.
  void replace(DataSet set);
  /// NOT_FOUND lists the names there are.
  Result<void> remove(std::string_view name);

 private:
  std::string path_;
  std::vector<DataSet> sets_;
};

}  // namespace skerry::client
