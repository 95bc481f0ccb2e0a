# A federation on this machine, for scripts: sourced, not run. Real processes, TLS, SQLite; nothing is left behind.
#
#   . deploy/local_federation.sh
#   build_skerry                       builds the programs; afterwards $bin has them
#   begin_work NAME KEEP               a directory of its own, and cd to it; KEEP true: it stays
#   gather NAME BYTES FILE…            text for a holder: data/NAME
#   start_coordinator FEDERATION       afterwards `"$bin/skerry"` speaks to it
#   start_holder NAME PURPOSE          invites a holder, gives it data/NAME as the data set "text" and starts its daemon
#   await_holders COUNT                until so many are connected
#
# SKERRY_PROGRAMS=DIR takes programs that are built already. Each function ends the script with a sentence where it fails.
local_federation_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
script=$(basename "$0")
children=()
holder_architectures='["transformer"]'
holder_encodings='["f32", "bf16", "f16", "int8", "int8_block", "int4", "e3m0", "topk2", "sign"]'

fail() {
  echo "$script: $*" >&2
  exit 1
}

build_skerry() {
  if [ -n "${SKERRY_PROGRAMS:-}" ]; then
    bin=$(cd "$SKERRY_PROGRAMS" && pwd)
    return
  fi
  "$local_federation_root/deploy/install-packages.sh"
  echo "Building Skerry (a few minutes the first time)"
  (cd "$local_federation_root" && cmake --preset release >/dev/null &&
    cmake --build --preset release --parallel "$(nproc)" --target skerry-server skerry-client skerry-trainer skerry)
  bin="$local_federation_root/build/release/bin"
}

end_work() {
  status=$?
  trap - EXIT INT TERM
  for child in "${children[@]}"; do kill "$child" 2>/dev/null || true; done
  for child in "${children[@]}"; do wait "$child" 2>/dev/null || true; done
  if [ $status -ne 0 ]; then
    echo >&2
    echo "$script: something went wrong; the last lines of each log:" >&2
    tail -n 5 "$work"/*.log >&2 2>/dev/null || true
  fi
  if $keep_work; then echo "Everything is in $work"; else rm -rf "$work"; fi
  exit $status
}

begin_work() { # NAME KEEP
  work=$(mktemp -d "${TMPDIR:-/tmp}/skerry-$1-XXXXXX")
  keep_work=$2
  trap end_work EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM
  cd "$work"
}

gather() { # NAME BYTES FILE…: the first BYTES of these files, each kept as a file of its own
  local name=$1 left=$2 file size number=0
  shift 2
  mkdir -p "data/$name"
  for file in "$@"; do
    [ -f "$file" ] || continue
    size=$(stat -L -c %s "$file")
    [ "$size" -gt 0 ] || continue
    head -c "$left" "$file" >"data/$name/$(printf %05d $number).txt"
    number=$((number + 1))
    left=$((left - (size < left ? size : left)))
    [ "$left" -gt 0 ] || break
  done
  [ "$number" -gt 0 ] || fail "found no text for holder '$name' on this system"
}

# Four kinds of text that any Debian has: texts KIND prints the paths of its files, one a line.
text_kinds=(headers cmake python licences)
texts() {
  case "$1" in
    headers) find /usr/include/c++ -type f ;;
    cmake) find /usr/share/cmake-*/Modules -maxdepth 1 -name '*.cmake' ;;
    python) find /usr/lib/python3.* -maxdepth 1 -name '*.py' ;;
    licences) find /usr/share/common-licenses -type f; find /usr/share/doc -maxdepth 2 -name copyright ;;
  esac | sort
}

start_coordinator() { # FEDERATION
  local port
  port=$(/usr/bin/python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
  "$bin/skerry-server" init --home server --federation "$1" --address "127.0.0.1:$port" --listen 127.0.0.1 >/dev/null
  "$bin/skerry-server" run --home server --ready-file server/ready >server.log 2>&1 &
  children+=($!)
  for _ in $(seq 100); do [ -e server/ready ] && break; sleep 0.1; done
  [ -e server/ready ] || fail "the coordinator did not start"
  export SKERRY_PROFILE="$work/server/operator"
  sandbox=bubblewrap
  if ! bwrap --unshare-all --ro-bind / / true 2>/dev/null; then
    sandbox=none
    echo "Note: bubblewrap cannot make namespaces here, so the trainers run without a sandbox."
  fi
}

start_holder() { # NAME PURPOSE
  local token fingerprint
  token=$("$bin/skerry" node invite "$1" 2>/dev/null)
  "$bin/skerry-client" join "$token" --home "$work/$1" >/dev/null
  "$bin/skerry-client" --home "$work/$1" data add text --kind text --path "$work/data/$1" --holdout 0.1 >/dev/null
  fingerprint=$(sed -n 's/^coordinators = //p' "$1/policy.toml")
  cat >"$1/policy.toml" <<POLICY
coordinators = $fingerprint
hours = ["always"]

[allow]
purposes = ["$2"]
architectures = $holder_architectures
max_parameters = 10_000_000
metrics = ["train_loss", "loss", "perplexity", "nats_per_byte", "bits_per_byte"]
encodings = $holder_encodings
error_messages = "full"

[[data]]
set = "text"
purposes = ["$2"]

[limits]
threads = 1

[trainer]
sandbox = "$sandbox"
POLICY
  "$bin/skerry-client" --home "$work/$1" run >"$1.log" 2>&1 &
  children+=($!)
}

await_holders() { # COUNT
  local connected=0
  for _ in $(seq 300); do
    connected=$("$bin/skerry" node list --json | grep -c '"connected"' || true)
    [ "$connected" -ge "$1" ] && return
    sleep 0.2
  done
  fail "only $connected of $1 holders are connected after a minute"
}
