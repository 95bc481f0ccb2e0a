#!/usr/bin/env bash
# Drives the fuzz targets with libFuzzer, AddressSanitizer and UBSan; every processor takes a target at a time.
#
#   tests/fuzz/run.sh [SECONDS [TARGET…]]     SECONDS of each target, 10 by default; all targets by default
#
# What is found lies in build/fuzz/found; what was learned about a target's inputs is kept in build/fuzz/learned/TARGET. Exit
# status 1 where a target failed: then mend it, and keep the input in tests/fuzz/corpus/TARGET, where every test run replays it.
set -euo pipefail
case "${1:-}" in -h | --help) sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 0 ;; esac
root=$(cd "$(dirname "$0")/../.." && pwd)
seconds=${1:-10}
[[ $seconds =~ ^[0-9]+$ ]] || { echo "tests/fuzz/run.sh: SECONDS is '$seconds', must be a whole number; see --help" >&2; exit 2; }
shift || true
cd "$root"
cmake --preset fuzz >/dev/null
cmake --build --preset fuzz --parallel "$(nproc)"
build=$root/build/fuzz
found=$build/found
mkdir -p "$found"
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=($(cd tests/fuzz/corpus && ls))

one() {
  local target=$1
  mkdir -p "$build/learned/$target"
  if "$build/tests/fuzz/${target}_fuzz" -max_total_time="$seconds" -timeout=20 -rss_limit_mb=2048 -print_final_stats=1 \
      -artifact_prefix="$found/$target-" "$build/learned/$target" "$root/tests/fuzz/corpus/$target" >"$build/$target.log" 2>&1; then
    echo "$target: $(sed -n 's/stat::number_of_executed_units: *//p' "$build/$target.log") executions, nothing found"
  else
    echo "$target FAILED; the input is in $found, the report in $build/$target.log:"
    grep -m 5 -E 'ERROR|runtime error|SUMMARY' "$build/$target.log" || tail -5 "$build/$target.log"
    return 1
  fi
}
export -f one
export build found root seconds
printf '%s\n' "${targets[@]}" | xargs -P "$(nproc)" -I{} bash -c 'one {}'
