"""Make the rows of the example tasks from real text that packages ship.

    python examples/data/make_data.py --out build/data                  # training rows
    python examples/data/make_data.py --out build/data --heldout qa     # rewrites its held-out rows

Six tasks are English (grammar, reply, summary, tone, tone-casual, qa); reply, summary and qa are
also made in German, French, Italian, Spanish, Japanese, Korean and Chinese (reply-de and so on).

Sources (licences in README.md beside this file): Debian's package indexes, read through apt, and
the PyPI package chatterbot-corpus. Held-out rows are fixed in the repository; training rows never
hold an input of a held-out row.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib.resources import files
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).parent))
from corrupt import corrupt
from tone import casual, professional

HERE = Path(__file__).parent
Row = dict[str, str]
HELDOUT_ROWS = 120
LANGUAGES = {
    "de": "german",
    "fr": "french",
    "it": "italian",
    "es": "spanish",
    "ja": "japanese",
    "ko": "korean",
    "zh": "chinese",
}
DEBIAN = {"zh": "zh_CN"}
"""A language's code in Debian's indexes, where it is another."""


def apt_update(lists: Path) -> None:
    """Fetch Debian's package indexes and their translations into ``lists``, once."""
    (lists / "partial").mkdir(parents=True, exist_ok=True)
    debian = [DEBIAN.get(code, code) for code in ("en", *LANGUAGES)]
    if all(list(lists.glob(f"*Translation-{_quoted(code)}*")) for code in debian):
        return
    codes = ",".join(debian)
    options = ["-o", f"Dir::State::Lists={lists}", "-o", f"Acquire::Languages={codes}"]
    subprocess.run(["apt-get", "update", *options], check=True, stdout=subprocess.DEVNULL)


def apt_records(lists: Path, code: str = "en") -> list[dict[str, str]]:
    """Debian package records with their long descriptions in a language, from apt's indexes."""
    code = DEBIAN.get(code, code)
    long_text: dict[str, tuple[str, str]] = {}
    for stanza in _stanzas(lists, f"*_main_i18n_Translation-{_quoted(code)}*"):
        synopsis, _, body = stanza.get(f"Description-{code}", "").partition("\n")
        long_text[stanza["Package"]] = (synopsis.strip(), body)
    records = []
    for stanza in _stanzas(lists, "*_main_binary-*_Packages*"):
        synopsis, body = long_text.get(stanza["Package"], ("", ""))
        if synopsis and body:
            records.append({**stanza, "synopsis": synopsis, "body": body})
    return sorted(records, key=lambda r: r["Package"])


def _quoted(code: str) -> str:
    return code.replace("_", "%5f")  # as apt names its files


def _stanzas(lists: Path, pattern: str) -> Iterator[dict[str, str]]:
    # The suite with the most packages is the release itself; updates and security repeat it.
    index = max(lists.glob(pattern), key=lambda p: p.stat().st_size)
    helper = ["/usr/lib/apt/apt-helper", "cat-file", str(index)]
    text = subprocess.run(helper, check=True, capture_output=True, text=True).stdout
    for block in text.split("\n\n"):
        fields: dict[str, str] = {}
        key = ""
        for line in block.splitlines():
            if line.startswith(" "):
                fields[key] += "\n" + line.strip()
            elif ": " in line:
                key, value = line.split(": ", 1)
                fields[key] = value
        if "Package" in fields:
            yield fields


def paragraphs(body: str) -> list[str]:
    """The prose paragraphs of a long description; lists and tables are left out."""
    parts = [" ".join(p.split("\n")).strip() for p in re.split(r"\n\.\n|\n\.$", body)]
    odd = re.compile(r"[*•|<>{}]|  | - |http")
    return [p for p in parts if p.endswith((".", "。")) and not odd.search(p)]


def length(text: str) -> int:
    """Words; two characters of Japanese or Chinese, which have no spaces, count as one."""
    return max(len(text.split()), len(re.findall("[\u3040-\u30ff\u4e00-\u9fff]", text)) // 2)


def sentences(records: list[dict[str, str]]) -> list[str]:
    """Distinct sentences of 6 to 22 plain words from the descriptions."""
    seen: dict[str, None] = {}
    for record in records:
        for paragraph in paragraphs(record["body"]):
            for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z])", paragraph):
                words = sentence.split()
                if 6 <= len(words) <= 22 and re.fullmatch(r"[A-Z][A-Za-z0-9 ,.'-]+\.", sentence):
                    seen.setdefault(sentence)
    return list(seen)


def dialogues(language: str = "english") -> list[tuple[str, str]]:
    """Distinct (message, reply) pairs of the chatterbot corpus, code left out."""
    pairs: dict[tuple[str, str], None] = {}
    folder = files("chatterbot_corpus") / "data" / language
    for entry in sorted(folder.iterdir(), key=lambda f: f.name):
        if entry.name == "coding.yml":
            continue
        for turns in yaml.safe_load(entry.read_text(encoding="utf-8"))["conversations"]:
            message = str(turns[0]).strip()
            for reply in turns[1:]:
                text = " ".join(str(reply).split())
                if 2 <= length(text) <= 30 and message and length(message) <= 30:
                    pairs.setdefault((message, text))
    return list(pairs)


def grammar_rows(lines: list[str], rng: random.Random) -> Iterator[Row]:
    for line in lines:
        wrong = corrupt(line, rng)
        if wrong != line:
            yield {"input": wrong, "output": line}


def reply_rows(pairs: list[tuple[str, str]], rng: random.Random) -> Iterator[Row]:
    del rng
    for message, reply in pairs:
        yield {"input": message, "output": reply}


def summary_rows(records: list[dict[str, str]], rng: random.Random) -> Iterator[Row]:
    del rng
    seen: set[str] = set()
    for record in records:
        prose = paragraphs(record["body"])
        synopsis = re.sub(r"\s*\(.*?\)|\s+[-–:]+ .*|[;:] .*", "", record["synopsis"])
        if not prose or not 15 <= length(prose[0]) <= 60 or length(synopsis) < 3:
            continue
        key = prose[0]
        # A translation that is not finished has "<trans>" in it.
        if "<" in synopsis:
            continue
        if key not in seen and not re.search(r"package contains|transitional|dummy", key):
            seen.add(key)
            yield {"input": key, "output": synopsis}


def tone_rows(lines: list[str], rng: random.Random) -> Iterator[Row]:
    del rng
    for line in lines:
        relaxed, formal = casual(line), professional(line)
        if relaxed is not None and formal is not None:
            yield {"input": relaxed, "output": formal}


def casual_rows(lines: list[str], rng: random.Random) -> Iterator[Row]:
    for row in tone_rows(lines, rng):
        yield {"input": row["output"], "output": row["input"]}


def qa_rows(
    records: list[dict[str, str]], rng: random.Random, language: str = "en"
) -> Iterator[Row]:
    sentences = dict(json.loads((HERE / "facts.json").read_text(encoding="utf-8"))[language])
    package = sentences.pop("package")
    for record in records:
        facts = []
        for field, (statement, question) in sentences.items():
            value = record.get(field, "")
            value = re.split(r"[ ,(|]", value)[0] if field in ("Depends", "Source") else value
            if value and length(value) <= 12 and "\n" not in value:
                facts.append((statement.format(value), question.format(record["Package"]), value))
        if len(facts) < 3:
            continue
        chosen = rng.sample(facts, 3)
        _, question, answer = rng.choice(chosen)
        passage = " ".join([package.format(record["Package"]), *(s for s, _, _ in chosen)])
        yield {"input": f"{passage} {question}", "output": answer}


def sources(lists: Path) -> dict[str, tuple[Callable[..., Iterator[Row]], list]]:
    """What makes each task's rows, and of what."""
    records = {code: apt_records(lists, code) for code in ("en", *LANGUAGES)}
    lines = sentences(records["en"])
    talk = [t for pair in dialogues() for t in pair if len(t.split()) >= 5]
    return {
        "grammar": (grammar_rows, lines),
        "reply": (reply_rows, dialogues()),
        "summary": (summary_rows, records["en"]),
        "tone": (tone_rows, list(dict.fromkeys(talk + lines[::3]))),
        "tone-casual": (casual_rows, list(dict.fromkeys(talk + lines[1::3]))),
        "qa": (qa_rows, records["en"]),
        **{f"reply-{code}": (reply_rows, dialogues(name)) for code, name in LANGUAGES.items()},
        **{f"summary-{code}": (summary_rows, records[code]) for code in LANGUAGES},
        **{f"qa-{code}": (partial(qa_rows, language=code), records[code]) for code in LANGUAGES},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("build/data"))
    parser.add_argument("--rows", type=int, default=4000, help="training rows a task, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--heldout", nargs="+", default=[], metavar="TASK", help="rewrite its held-out rows too"
    )
    args = parser.parse_args()

    lists = (args.out / "apt-lists").absolute()
    apt_update(lists)
    for task, (make, source) in sources(lists).items():
        rng = random.Random(f"{task}/{args.seed}")
        shuffled = list(source)
        rng.shuffle(shuffled)
        rows: dict[str, list[Row]] = {}
        for row in make(shuffled, rng):
            rows.setdefault(row["input"].lower(), []).append(row)
        groups = list(rows.values())
        heldout_file = HERE / "heldout" / f"{task}.jsonl"
        if task in args.heldout:
            # Where there is little, a quarter: what is left must still teach.
            count = min(HELDOUT_ROWS, len(groups) // 4)
            write_rows(heldout_file, [group[0] for group in groups[:count]])
        held = {json.loads(line)["input"].lower() for line in heldout_file.open(encoding="utf-8")}
        train = [row for g in groups if g[0]["input"].lower() not in held for row in g]
        write_rows(args.out / f"{task}.jsonl", train[: args.rows])
        print(f"{task}: {len(train[: args.rows])} training rows, {len(held)} held out")


def write_rows(path: Path, rows: list[Row]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
