#!/usr/bin/env bash
# Fuzz the manifest reader: runtime/tests/fuzz.sh MANIFEST.json [SECONDS]. Needs clang++ and the
# venv's cmake and ninja on the PATH, and EXECUTORCH_CMAKE naming executorch/share/cmake.
set -euo pipefail
cd "$(dirname "$0")/.."
seed=$1 seconds=${2:-300}
build=${BUILD:-../build/fuzz}
cmake -S . -B "$build" -G Ninja -DCMAKE_CXX_COMPILER=clang++ -DHYDRAPACK_FUZZ=ON \
  -Dexecutorch_DIR="$EXECUTORCH_CMAKE" >/dev/null
cmake --build "$build" --target fuzz-manifest >/dev/null
corpus=$(mktemp -d)
trap 'rm -rf "$corpus"' EXIT
cp "$seed" "$corpus/seed.json"
python3 -c 'import json, sys; keys = set()
def walk(v):
    if isinstance(v, dict):
        for k, x in v.items():
            keys.add(k); walk(x)
    elif isinstance(v, list):
        for x in v: walk(x)
walk(json.load(open(sys.argv[1])))
print("\n".join("\"\\\"%s\\\"\"" % k for k in sorted(keys)))' "$seed" >"$corpus.dict"
"$build/fuzz-manifest" -max_total_time="$seconds" -max_len=65536 -dict="$corpus.dict" \
  -print_final_stats=1 "$corpus" 2>&1 | tail -n 12
rm -f "$corpus.dict"
