"""Prompt lookup against plain decoding, on held-out rows of the example tasks, in C++.

    hydrapack demo --out build/demo    # or any base program and package of the example tasks
    python benchmarks/lookup.py build/demo/model.pte build/demo/package

Greedy answers of hydrapack-run; each row is answered both ways in turn. The time is of decoding,
without the prompt.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from hydrapack.device.native import NativeSession

DATA = Path(__file__).parents[1] / "examples" / "data" / "heldout"
TASKS = ("grammar", "qa", "reply", "summary", "tone")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("package", type=Path)
    parser.add_argument("--rows", type=int, default=40, help="of each task")
    args = parser.parse_args()
    print(f"$ python benchmarks/lookup.py {' '.join(sys.argv[1:])}\n")
    print("| task | tokens | calls | ms a token, plain | with lookup | faster | rows alike |")
    print("|---|---|---|---|---|---|---|")
    with NativeSession(args.model, args.package) as session:
        for task in TASKS:
            lines = (DATA / f"{task}.jsonl").read_text(encoding="utf-8").splitlines()
            texts = [json.loads(line)["input"] for line in lines[: args.rows]]
            session.use(task)
            times, tokens, calls, alike = [0.0, 0.0], [0, 0], 0, 0
            for number, text in enumerate(texts):
                answers = {}
                for lookup in (number % 2 == 0, number % 2 == 1):
                    answers[lookup] = "".join(session.generate(text, lookup=lookup))
                    times[lookup] += session.stats.decode_ms
                    tokens[lookup] += session.stats.decode_tokens
                    calls += session.stats.decode_calls if lookup else 0
                alike += answers[False] == answers[True]
            plain, guessed = (ms / n for ms, n in zip(times, tokens, strict=True))
            print(
                f"| {task} | {tokens[1]} | {calls} | {plain:.2f} | {guessed:.2f} | "
                f"{plain / guessed:.2f} | {alike} of {len(texts)} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
