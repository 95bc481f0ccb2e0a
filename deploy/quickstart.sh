#!/usr/bin/env bash
# Trains a small language model across four data holders whose text never leaves them, then compares it with what each
# of them could have done alone. Real processes, TLS, SQLite; nothing is downloaded but Debian packages.
#
#   deploy/quickstart.sh [--json FILE] [--compare-pooled] [--keep]
#
#   --json FILE        also write every figure to FILE
#   --compare-pooled   also train one model on all four texts together: the honest upper bound
#   --keep             keep the working directory and say where it is
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
json="" pooled=false keep=false
while [ $# -gt 0 ]; do
  case "$1" in
    --json) json=$(realpath -m "${2:?--json needs a file}"); shift ;;
    --compare-pooled) pooled=true ;;
    --keep) keep=true ;;
    -h | --help) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) echo "quickstart.sh: unknown option '$1'; see --help" >&2; exit 2 ;;
  esac
  shift
done

. "$root/deploy/local_federation.sh"
build_skerry
begin_work quickstart "$keep"
started=$SECONDS

# ---- four holders, four kinds of text that any Debian has ----
holders=("${text_kinds[@]}")
bytes=800000
for holder in "${holders[@]}"; do
  mapfile -t files < <(texts "$holder")
  gather "$holder" $bytes "${files[@]}"
done

# ---- the coordinator, and the holders' daemons: each joins with a token, describes its data, says what is allowed ----
start_coordinator quickstart
for holder in "${holders[@]}"; do start_holder "$holder" quickstart; done

# ---- the run ----
spec="$root/examples/quickstart/run.toml"
steps=$(sed -n 's/^steps = //p' "$spec")
rounds=$(sed -n 's/^rounds = //p' "$spec")
await_holders 4
echo
echo "Four holders, $((bytes / 1000)) kB of text each: ${holders[*]}. DiLoCo, $rounds rounds of $steps steps."
echo
"$bin/skerry" run submit "$spec" --dry-run --json | /usr/bin/python3 -c 'import json, sys; open("spec.json", "w").write(json.load(sys.stdin)["spec_json"])'
"$bin/skerry" run submit "$spec" --watch
"$bin/skerry" run show quickstart --json >run.json
"$bin/skerry" model export quickstart --fragments -o federated >/dev/null
federated_seconds=$((SECONDS - started))

# ---- each holder alone, for the same number of steps ----
echo
echo "Now each holder trains alone for the same $((rounds * steps)) steps, two at a time."
alone() { # NAME PATH
  /usr/bin/python3 "$root/deploy/alone.py" train "$bin/skerry-trainer" spec.json "$2" "alone-$1" --steps $((rounds * steps)) >"alone-$1.log" 2>&1
}
running=()
for holder in "${holders[@]}"; do
  alone "$holder" "data/$holder" &
  running+=("$!:$holder")
  children+=($!)
  if [ ${#running[@]} -ge "$(nproc)" ]; then
    wait "${running[0]%%:*}"
    echo "  ${running[0]#*:} is done"
    running=("${running[@]:1}")
  fi
done
for one in "${running[@]}"; do wait "${one%%:*}"; echo "  ${one#*:} is done"; done
if $pooled; then
  echo "And one model on all four texts together, for $((rounds * steps)) steps of four times the batch."
  mkdir data/pooled
  for holder in "${holders[@]}"; do
    # Only what is not held out, so that nobody is measured on what was trained on.
    /usr/bin/python3 - "data/$holder" "data/pooled/$holder.txt" <<'PY'
import pathlib, sys
text = b"".join(p.read_bytes() for p in sorted(pathlib.Path(sys.argv[1]).iterdir()))
pathlib.Path(sys.argv[2]).write_bytes(text[: int(len(text) * 0.9)])
PY
  done
  sed 's/"batch":12/"batch":48/' spec.json >pooled.json
  /usr/bin/python3 "$root/deploy/alone.py" train "$bin/skerry-trainer" pooled.json data/pooled alone-pooled --steps $((rounds * steps)) --threads "$(nproc)" --holdout 0 >alone-pooled.log 2>&1
fi

# ---- what came out ----
measure() { /usr/bin/python3 "$root/deploy/alone.py" evaluate "$bin/skerry-trainer" spec.json "data/$2" "$1"; }
models=(federated)
for holder in "${holders[@]}"; do models+=("alone-$holder"); done
if $pooled; then models+=(alone-pooled); fi
for model in "${models[@]}"; do
  for holder in "${holders[@]}"; do echo "$model $holder $(measure "$model" "$holder")"; done
done >measured.txt
sample=$("$bin/skerry" model sample quickstart --prompt "The " --tokens 160 --seed 7)
export sample rounds steps federated_seconds json
export total_seconds=$((SECONDS - started))
/usr/bin/python3 - <<'PY'
import json, os, sys

perplexity = {}
for line in open("measured.txt"):
    model, holder, figures = line.split(" ", 2)
    perplexity.setdefault(model, {})[holder] = json.loads(figures)["perplexity"]
holders = list(perplexity["federated"])
names = {"federated": "federated", "alone-pooled": "pooled text"}
print("\nPerplexity on each holder's held-out text (lower is better):\n")
print(f"  {'model':<22}" + "".join(f"{h:>11}" for h in holders) + f"{'average':>11}")
average = {}
for model, values in perplexity.items():
    average[model] = sum(values.values()) / len(values)
    label = names.get(model, model.replace("alone-", "") + " alone")
    print(f"  {label:<22}" + "".join(f"{values[h]:>11.2f}" for h in holders) + f"{average[model]:>11.2f}")

run = json.load(open("run.json"))
rounds, steps = int(os.environ["rounds"]), int(os.environ["steps"])
spec = json.load(open("spec.json"))
up, down = int(run["bytes_up"]), int(run["bytes_down"])
header = open("federated/all.safetensors", "rb")
size = int.from_bytes(header.read(8), "little")
tensors = json.loads(header.read(size))
parameters = 0
for name, tensor in tensors.items():
    if name != "__metadata__":
        begin, end = tensor["data_offsets"]
        parameters += (end - begin) // 4
synchronous = 2 * 4 * parameters * rounds * steps * len(holders)
print(f"\nOn the wire: {(up + down) / 1e6:.1f} MB in {rounds} rounds (up {up / 1e6:.1f}, down {down / 1e6:.1f}; {parameters:,} parameters, bf16).")
print(f"Synchronous data parallelism would have moved {synchronous / 1e6:,.0f} MB (f32 gradients up and down at every step): {synchronous / (up + down):.0f} times as much.")
print("\nA sample of the federated model:\n")
print("  " + os.environ["sample"].replace("\n", "\n  "))
print(f"\nFederated training took {os.environ['federated_seconds']} s, everything {os.environ['total_seconds']} s.")
if os.environ["json"]:
    with open(os.environ["json"], "w") as out:
        json.dump({"perplexity": perplexity, "average": average, "bytes_up": up, "bytes_down": down, "bytes_synchronous": synchronous,
                   "parameters": parameters, "rounds": rounds, "steps": steps, "federated_seconds": int(os.environ["federated_seconds"]),
                   "total_seconds": int(os.environ["total_seconds"]), "sample": os.environ["sample"], "spec_sha256": run["spec_hash"]}, out, indent=2)
better = all(average["federated"] < value for model, value in average.items() if model.startswith("alone-") and model != "alone-pooled")
if not better:
    print("\nThe federated model did not beat every lone holder on the average.", file=sys.stderr)
    sys.exit(1)
PY
cat <<END

How to go on
  your own data      skerry-client data add NAME --kind text --path DIRECTORY, and name it in policy.toml (docs/data-holders.md)
  your own machines  skerry-server init --address HOST:PORT on one, skerry-client join TOKEN on the others (docs/operators.md)
  your own run       edit a run spec like examples/quickstart/run.toml (docs/run-spec.md)
END
