// Texts as a holder has them: directories of files, JSON lines; and what becomes of them, token files.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "client/trainer/tokenizer.h"
#include "common/base/result.h"

namespace skerry::trainer {

/// Where documents are.
struct DocumentSource {
  std::string kind = "text";   ///< "text": every file is one; "jsonl": every line of every file
  std::string path;            ///< a directory or one file
  std::string field = "text";  ///< jsonl: the member that holds a line's text
};

/// Takes one document; `where` names it in messages.
using TakeDocument = std::function<Result<void>(std::string_view text, const std::string& where)>;

/// Visits all documents in the order of their files' paths. Of a directory, kind text takes every file below it, jsonl
/// those whose names end in .jsonl or .ndjson (names that begin with a dot are left out, symbolic links are not
/// followed). Empty documents and empty lines are left out. Errors of reading; INVALID_ARGUMENT "FILE line N: …" for a
/// line that is no JSON object, lacks the field, or has no text there, or is longer than 16 MiB; where there is
/// nothing.
Result<void> each_document(const DocumentSource& source, const TakeDocument& take);

/// The same of the lines of one text; `path` names it in messages.
Result<void> each_json_line(std::string_view content, const std::string& path, const std::string& field,
                            const TakeDocument& take);

/// Writes the documents' tokens into token files: OUT, or with `shards` above 1 OUT-0 … OUT-(shards − 1) before the
/// name's extension, to which the documents go in turn. Files appear complete (temporary names, then renamed).
struct TokenFilesWritten {
  std::uint64_t files = 0;
  std::uint64_t documents = 0;
  std::uint64_t tokens = 0;  ///< with the end-of-text tokens
  std::uint64_t text_bytes = 0;
};
Result<TokenFilesWritten> write_token_files(const DocumentSource& source, const Tokenizer& tokenizer,
                                            const std::string& out, unsigned shards);

}  // namespace skerry::trainer
