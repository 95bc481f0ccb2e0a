#!/bin/sh
# Runs the benchmarks by name and compares each with its target and its baseline: tests/bench/run.sh [NAME…] [--json FILE]
#
#        tests/bench/run.sh robustness [--json FILE] [--seeds N]    every rule × every attack, into docs/robustness.md
#        tests/bench/run.sh learning [--only CLAIM] [--json FILE]   what the exchanges learn, into docs/results.md (hours)
#
#   --with-build   also times a clean build (half an hour)
#   --repeat N     a figure is the median of N values (default 3)
#   --no-build     measures what is built, without looking whether it is up to date
#
# Environment: SKERRY_BUILD (build directory, default build/release), SKERRY_BENCH_DIR (a directory on the disk that is to be
# measured, default inside the build directory). Exit code 0: every figure reached its target; 4: at least one did not.
set -eu
source=$(cd "$(dirname "$0")/../.." && pwd)
build=${SKERRY_BUILD:-$source/build/release}
compile=yes
for word in "$@"; do
  shift
  if [ "$word" = --no-build ]; then compile=no; else set -- "$@" "$word"; fi
done
case " $* " in *" --help "*|*" -h "*) sed -n '2,13s/^# \{0,1\}//p' "$0"; exit 0 ;; esac

case "${1:-}" in robustness|learning)
  bench=$1
  shift
  if [ "$compile" = yes ]; then
    [ -f "$build/build.ninja" ] || cmake --preset release -S "$source" -B "$build" >&2
    ninja -C "$build" skerry-sim skerry-trainer >&2
  fi
  [ "$bench" = learning ] || set -- --markdown "$source/docs/robustness.md" "$@"
  exec "$source/tests/bench/$bench.py" --programs "$build/bin" "$@"
esac

if [ "$compile" = yes ]; then
  [ -f "$build/build.ninja" ] || cmake --preset release -S "$source" -B "$build" >&2
  targets="skerry-server skerry-client skerry-bench skerry_aggregate_bench"
  if grep -q '^SKERRY_TRAINER:BOOL=ON' "$build/CMakeCache.txt"; then targets="$targets skerry-trainer"; fi
  ninja -C "$build" $targets >&2
fi
trainer=${SKERRY_TRAINER:-$build/bin/skerry-trainer}
[ -x "$trainer" ] && set -- "$@" --trainer "$trainer"
exec "$build/bin/skerry-bench" figures --programs "$build/bin" --source "$source" \
  --work "${SKERRY_BENCH_DIR:-$build}/bench-$$" "$@"
