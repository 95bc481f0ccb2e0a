#!/usr/bin/env bash
# Installs what is missing, builds, runs the tests and ends with ctest's summary.
#
#   tests/run.sh              everything but the long tests
#   tests/run.sh --all        the long ones too
#   tests/run.sh --preset asan|tsan|dev|release   (default: dev)
#   tests/run.sh --fuzz SECONDS   instead: libFuzzer on every fuzz target, so long each (tests/fuzz/run.sh)
#   tests/run.sh -R PATTERN   only the tests whose name matches
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
preset=dev
select=(-LE long)
while [ $# -gt 0 ]; do
  case "$1" in
    --all) select=() ;;
    --fuzz) fuzz=${2:?--fuzz needs a number of seconds}; shift ;;
    --preset) preset=${2:?--preset needs a name}; shift ;;
    -R) select+=(-R "${2:?-R needs a pattern}"); shift ;;
    -h | --help) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) echo "tests/run.sh: unknown option '$1'; see --help" >&2; exit 2 ;;
  esac
  shift
done
"$root/deploy/install-packages.sh"
[ -z "${fuzz:-}" ] || exec "$root/tests/fuzz/run.sh" "$fuzz"
cd "$root"
cmake --preset "$preset" >/dev/null
cmake --build --preset "$preset" --parallel "$(nproc)"
ctest --test-dir "build/$preset" --output-on-failure --timeout 900 "${select[@]}"
