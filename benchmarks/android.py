"""The Android library on this machine's Java, beside the Python and the C++ session, interleaved.

    python benchmarks/android.py model.pte package --jars JAR:JAR… --library SO

Each round starts each of them anew; every figure is the median over the rounds. The jars, which
Maven has built and fetched: hydrapack, executorch-desktop, kotlin-stdlib, fbjni-java-only and
nativeloader. SO is android_demo/desktop/native, built.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
TOKENS, SWAPS = 64, 200
TEXT = (
    "Anna: Did you book the table?\nBen: Yes, for eight at the Italian place.\nAnna: Perfect, I "
    "will bring Tom.\nBen: Then I will call them and ask for one more seat."
)


def measure(kind: str, model: Path, package: Path, began: float) -> dict[str, float]:
    """Times of Session or NativeSession, in this process."""
    from hydrapack.device import Session
    from hydrapack.device.native import NativeSession

    session = (Session if kind == "python" else NativeSession)(model, package)
    first = 0.0
    session.use(session.tasks[0])
    for _ in session.generate(TEXT, TOKENS, temperature=0, stop=[]):
        first = first or 1000 * (time.time() - began)
    stats = session.stats
    found = {
        "load_ms": stats.load_ms,
        "first_ms": first,
        "prefill_rate": stats.prefill_rate,
        "decode_rate": stats.decode_rate,
        "tokens": stats.decode_tokens,
    }
    swaps = []
    for i in range(SWAPS if kind == "python" else 20):
        session.use(session.tasks[i % len(session.tasks)])
        if kind != "python":
            # There the program swaps with the answer.
            for _ in session.generate("a", 1, temperature=0, stop=[]):
                pass
        swaps.append(session.stats.swap_ms)
    return {**found, "swap_ms": statistics.median(swaps)}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("package", type=Path)
    parser.add_argument("--jars", default="")
    parser.add_argument("--library", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one", choices=["python", "native"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        import psutil

        began = psutil.Process().create_time()
        print(json.dumps(measure(args.one, args.model, args.package, began)))
        return
    rows: dict[str, list[dict[str, float]]] = {"android": [], "native": [], "python": []}
    with tempfile.TemporaryDirectory() as classes:
        source = ROOT / "android_demo" / "tools" / "Measure.java"
        subprocess.run(["javac", "-cp", args.jars, "-d", classes, source], check=True)
        own = [str(args.model), str(args.package)]
        java = ["java", "-cp", f"{args.jars}:{classes}", "Measure", str(args.library), *own]
        for number in range(args.rounds):
            for kind, found in rows.items():
                command = [sys.executable, __file__, *own, "--one", kind]
                if kind == "android":
                    command = [*java, str(TOKENS), str(SWAPS), TEXT]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                found.append(json.loads(done.stdout.splitlines()[-1]))
            print(f"round {number + 1} of {args.rounds}", file=sys.stderr)
    keys = list(rows["python"][0])
    print("| | " + " | ".join(keys) + " |")
    print("|---" * (len(keys) + 1) + "|")
    for kind, found in rows.items():
        values = [statistics.median(row[key] for row in found) for key in keys]
        print(f"| {kind} | " + " | ".join(f"{value:.2f}" for value in values) + " |")


if __name__ == "__main__":
    main()
