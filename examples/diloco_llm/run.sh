#!/usr/bin/env bash
# Four islands, four kinds of text, one language model from scratch; ends with a text that it writes.
#
#   examples/diloco_llm/run.sh [--keep]
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
spec="$root/examples/diloco_llm/run.toml"
keep=false
[ "${1:-}" = --keep ] && keep=true
. "$root/deploy/local_federation.sh"
build_skerry
begin_work diloco-llm "$keep"

echo "What the run will cost, if the islands were joined by 20 Mbit/s:"
echo
"$bin/skerry" plan "$spec" --step-seconds 0.1 --up-mbps 20 --down-mbps 20

for island in "${text_kinds[@]}"; do
  mapfile -t files < <(texts "$island")
  gather "$island" 800000 "${files[@]}"
done
start_coordinator diloco-llm
for island in "${text_kinds[@]}"; do start_holder "$island" example; done
await_holders 4

echo
echo "Four islands train: ${text_kinds[*]}."
echo
started=$SECONDS
"$bin/skerry" run submit "$spec" --watch
echo
echo "Trained in $((SECONDS - started)) s. Held-out loss (nats per byte) by round:"
"$bin/skerry" run metrics diloco-llm --json | /usr/bin/python3 -c '
import json, sys
for row in json.load(sys.stdin)["rows"]:
    if row["kind"] == "evaluation" and not row.get("node"):
        loss = next(metric["value"] for metric in row["metrics"] if metric["name"] == "loss")
        print("  {:>3}  {:.3f}  {}".format(row["version"], loss, "#" * round(15 * loss)))'
"$bin/skerry" run show diloco-llm | grep traffic
echo
echo "What it writes after \"#include <\":"
echo
"$bin/skerry" model sample diloco-llm --prompt "#include <" --tokens 300 --seed 3
