#!/usr/bin/env bash
# Sixteen clients, four of them at a time, train one language model with Photon's recipe; then a second run continues the
# first one from its thirtieth round, and makes the same model.
#
#   examples/photon_llm/run.sh [--keep]
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
spec="$root/examples/photon_llm/run.toml"
keep=false
[ "${1:-}" = --keep ] && keep=true
. "$root/deploy/local_federation.sh"
build_skerry
begin_work photon-llm "$keep"

# Sixteen holders: every fourth file of a kind.
clients=()
for kind in "${text_kinds[@]}"; do
  mapfile -t files < <(texts "$kind")
  for part in 0 1 2 3; do
    own=()
    for ((i = part; i < ${#files[@]}; i += 4)); do own+=("${files[i]}"); done
    clients+=("$kind-$part")
    gather "$kind-$part" 200000 "${own[@]}"
  done
done
start_coordinator photon-llm
for client in "${clients[@]}"; do start_holder "$client" example; done
await_holders 16

echo
echo "Sixteen clients, four in each round:"
echo
started=$SECONDS
"$bin/skerry" run submit "$spec" --watch
echo
echo "Trained in $((SECONDS - started)) s. Round, loss of those who trained, gradient-noise scale (in clients), norms of the outer"
echo "gradient of the first and the last layer; loss on all clients' held-out text:"
"$bin/skerry" run metrics photon-llm --json | /usr/bin/python3 -c '
import json, sys
rows = json.load(sys.stdin)["rows"]
held_out = {row["version"]: metric["value"] for row in rows if row["kind"] == "evaluation" and not row.get("node")
            for metric in row["metrics"] if metric["name"] == "loss"}
for row in rows:
    if row["kind"] != "exchange" or int(row["version"]) % 5: continue
    of = {metric["name"]: metric["value"] for metric in row["metrics"]}
    print("  {:>3}  {:.3f}  {:>6}  {:.3f} {:.3f}  {}".format(
        row["version"], of["train_loss"], "{:.1f}".format(of["noise_scale"]) if "noise_scale" in of else "-",
        of["outer_gradient_norm/model.layers.0"], of["outer_gradient_norm/model.layers.2"],
        "{:.3f}".format(held_out[row["version"]]) if row["version"] in held_out else ""))'

echo
echo "Once more from round 30, as a run of its own:"
echo
sed 's/^name = .*/name = "photon-again"/' "$spec" >again.toml
"$bin/skerry" run submit again.toml --resume photon-llm@30 --watch
"$bin/skerry" model export photon-llm -o first >/dev/null
"$bin/skerry" model export photon-again -o again >/dev/null
/usr/bin/python3 - <<'PY'
import pathlib, sys

def values(path):
    data = pathlib.Path(path, "model.safetensors").read_bytes()
    return data[8 + int.from_bytes(data[:8], "little"):]

if values("first") != values("again"):
    sys.exit("\nThe two models differ.")
print("\nBoth runs made the same model, bit for bit.")
PY
