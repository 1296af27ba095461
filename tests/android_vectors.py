"""What the Android tests compare with: tokenizers, texts, draws, manifests and sessions by Python.

Everything is written as JSON into a folder that tests/test_android.py hands to Maven.
"""

from __future__ import annotations

import json
import random
import subprocess
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from conftest import ROOT, greedy
from make_manifests import FOLDER, more
from test_contract import draws, mutants, sampling_requests, verdict
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from hydrapack.adapters.prompt import start_ids
from hydrapack.device.golden import SelfTest
from hydrapack.device.lookup import Lookup
from hydrapack.device.session import Session
from hydrapack.device.text import Pieces

LINES = 4000
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
SCRIPTS = (
    "the model swaps heads on a phone and writes don't WON'T it's I'LL we've naïve café Straße "
    "Привет мир как дела Γειά σου Κόσμε שלום עולם مرحبا بالعالم नमस्ते दुनिया こんにちは世界 テスト "
    "안녕하세요 세계 你好世界 สวัสดีชาวโลก ქართული հայերեն ትግርኛ বাংলা தமிழ் ខ្មែរ བོད་ ᏣᎳᎩ "
    "x=1 foo_bar() {}[]; <b>bold</b> https://example.org/a?b=c#d 3.14 1234567890 ½ ² Ⅻ ٣٤٥ १२३ "
    "e\u0301 A\u030a \u1100\u1161 ﬁ ſ 'ſ K 🤖 👩‍👩‍👧 🇩🇪 … — “quoted” ▁ <0x41> Ġ"
)
WORDS = SCRIPTS.split(" ")
SPACES = (
    " ",
    " ",
    " ",
    "  ",
    "   ",
    "\n",
    "\n\n",
    "\r\n",
    "\t",
    "\u00a0",
    "\u2003",
    "\u3000",
    "\x85",
    "",
)
SPECIAL = (
    "<|im_start|>",
    "<|im_end|>",
    "<|end|>",
    "<s>",
    "</s>",
    "<start_of_turn>",
    "<unk>",
    "[KEY]",
)


def known_ranges(java: str) -> list[tuple[int, int]]:
    """Code points that this machine's Java knows: others may be cut otherwise by its tables."""
    source = ROOT / "android_demo" / "tools" / "Assigned.java"
    done = subprocess.run([java, str(source)], capture_output=True, text=True, check=True)
    lines = [line.split() for line in done.stdout.splitlines()]
    return [(int(start), int(end)) for start, end in lines]


def texts(ranges: list[tuple[int, int]], count: int, seed: int = 0) -> list[str]:
    """Lines of words of many scripts, of random characters of one block, and of any.

    The tables of NFC within tokenizers are of an older Unicode: marks that it does not know stay
    where they are. A line in a thousand, left out here.
    """
    generator = random.Random(seed)
    nfc = normalizers.NFC()
    anywhere = [generator.randint(*r) for r in ranges for _ in range(3)]

    def letter(start: int, end: int) -> str:
        return chr(generator.randint(start, end))

    def line() -> str:
        kind = generator.randrange(5)
        if kind <= 1:
            parts = []
            for _ in range(generator.randrange(1, 25)):
                parts += [generator.choice(WORDS), generator.choice(SPACES)]
                if generator.random() < 0.03:
                    parts.append(generator.choice(SPECIAL))
            return "".join(parts)
        if kind == 2:
            start, end = generator.choice(ranges)
            end = min(end, start + 200)
            return "".join(letter(start, end) for _ in range(generator.randrange(1, 30)))
        if kind == 3:
            return "".join(map(chr, generator.choices(anywhere, k=generator.randrange(1, 30))))
        return "".join(letter(*generator.choice(ranges)) for _ in range(20))

    found, left_out = ["", " ", "\n", "'", "a", "\u0000"], 0
    while len(found) < count:
        made = line()
        if nfc.normalize_str(made) == unicodedata.normalize("NFC", made):
            found.append(made)
        else:
            left_out += 1
    assert left_out < count / 200
    return found


def with_bos(tokenizer: Tokenizer) -> processors.TemplateProcessing:
    """<s> before a text and </s> behind it."""
    special = [(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")]
    return processors.TemplateProcessing("<s> $A </s>", "<s> $A $B", special_tokens=special)


def small_tokenizers(sample: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, tokenizer.json) in the shapes that models' files have."""
    special = ["<|im_start|>", "<|im_end|>", "<s>", "</s>"]
    split = pre_tokenizers.Split
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for name, normalizer, pre_tokenizer in (
        ("llama3", None, pre_tokenizers.Sequence([split(Regex(LLAMA3), "isolated"), byte_level])),
        (
            "qwen2",
            normalizers.NFC(),
            pre_tokenizers.Sequence([split(Regex(QWEN2), "isolated"), byte_level]),
        ),
        (
            "digits",
            None,
            pre_tokenizers.Sequence(
                [
                    pre_tokenizers.Digits(individual_digits=True),
                    pre_tokenizers.ByteLevel(add_prefix_space=False),
                ]
            ),
        ),
        ("prefix", None, pre_tokenizers.ByteLevel(add_prefix_space=True)),
    ):
        tokenizer = Tokenizer(models.BPE(ignore_merges=name == "llama3"))
        if normalizer is not None:
            tokenizer.normalizer = normalizer
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizer, decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=1500,
            special_tokens=special,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        tokenizer.train_from_iterator(sample, trainer)
        tokenizer.add_tokens([AddedToken("[KEY]", normalized=True), AddedToken("model swaps")])
        if name in ("llama3", "digits"):
            parts = [processors.ByteLevel(), with_bos(tokenizer)]
            tokenizer.post_processor = processors.Sequence(parts)
        yield name, json.loads(tokenizer.to_str())

    underscore = "\u2581"
    to_space = decoders.Replace(underscore, " ")
    for name, normalizer, pre_tokenizer, decoder in (
        (
            "gemma",
            normalizers.Replace(" ", underscore),
            split(" ", "merged_with_previous"),
            [to_space, decoders.ByteFallback(), decoders.Fuse()],
        ),
        (
            "llama2",
            normalizers.Sequence(
                [normalizers.Prepend(underscore), normalizers.Replace(" ", underscore)]
            ),
            None,
            [to_space, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)],
        ),
        ("unknown", None, split(" ", "merged_with_previous"), [decoders.Fuse()]),
    ):
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=name == "llama2"))
        if normalizer is not None:
            tokenizer.normalizer = normalizer
        if pre_tokenizer is not None:
            tokenizer.pre_tokenizer = pre_tokenizer
        tokenizer.decoder = decoders.Sequence(decoder)
        trainer = trainers.BpeTrainer(
            vocab_size=900,
            special_tokens=["<unk>", *special, "<start_of_turn>"],
            limit_alphabet=150,
            max_token_length=12,
            show_progress=False,
        )
        tokenizer.train_from_iterator((line[:80] for line in sample[:400]), trainer)
        tokenizer.add_tokens([AddedToken("\n\n", normalized=False)])
        if name == "gemma":
            tokenizer.post_processor = with_bos(tokenizer)
        content = json.loads(tokenizer.to_str())
        if name != "unknown":
            vocabulary = content["model"]["vocab"]
            first = 1 + max(*vocabulary.values(), *(t["id"] for t in content["added_tokens"]))
            vocabulary |= {f"<0x{byte:02X}>": first + byte for byte in range(256)}
            content["model"]["byte_fallback"] = True
        yield name, content


def write_tokenizer(folder: Path, content: str, lines: list[str]) -> None:
    """tokenizer.json, and what Python makes of the lines and of random ids with it."""
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_text(content, encoding="utf-8")
    tokenizer = Tokenizer.from_str(content)
    encoded = tokenizer.encode_batch(lines, add_special_tokens=False)
    (folder / "start.json").write_text(json.dumps({"ids": start_ids(tokenizer)}))
    tokenizer.encode_special_tokens = True
    plain = tokenizer.encode_batch(lines, add_special_tokens=False)
    tokenizer.encode_special_tokens = False
    with (folder / "encode.jsonl").open("w", encoding="utf-8") as file:
        for line, special, bare in zip(lines, encoded, plain, strict=True):
            row = {"text": line, "ids": special.ids}
            file.write(json.dumps(row if special.ids == bare.ids else {**row, "plain": bare.ids}))
            file.write("\n")
    generator = random.Random(1)
    size = tokenizer.get_vocab_size()
    with (folder / "decode.jsonl").open("w", encoding="utf-8") as file:
        for number in range(500):
            if number % 3:
                ids = generator.choices(range(size + 3), k=generator.randrange(1, 30))
            else:
                ids = generator.choice(encoded).ids[:60]
            if number % 5 == 0:
                # Cut characters: what begins or ends amid one is held back.
                ids = ids[1:]
            stop = generator.choice(([], ["e", "\n\n"], ["the", "a", "abc"], ["й", "界", "🤖"]))
            file.write(json.dumps(decoded(tokenizer, ids, stop)) + "\n")


def decoded(tokenizer: Tokenizer, ids: list[int], stop: list[str]) -> dict[str, Any]:
    """The text of ids, whole and piece by piece; no pieces where tokenizers itself fails."""
    row: dict[str, Any] = {"ids": ids, "text": tokenizer.decode(ids), "stop": stop}
    pieces, given = Pieces(tokenizer, stop), []
    try:
        for token in ids:
            given.append(pieces.push(token))
            if pieces.stopped:
                break
    except Exception:  # the binding raises bare Exceptions
        return row
    return {**row, "pieces": given, "stopped": pieces.stopped, "rest": pieces.rest()}


def write_tokenizers(folder: Path, java: str, smollm2: Path | None) -> None:
    """A folder for each tokenizer."""
    lines = texts(known_ranges(java), LINES)
    for name, content in small_tokenizers(lines[:2000]):
        write_tokenizer(folder / name, json.dumps(content), lines)
    if smollm2 is not None:
        content = (smollm2 / "tokenizer.json").read_text(encoding="utf-8")
        write_tokenizer(folder / "smollm2", content, lines)


def write_manifests(folder: Path) -> None:
    """The shared corpus, what is too large to commit, and mutants; verdicts.json has Python's."""
    folder.mkdir(parents=True)
    verdicts = json.loads((FOLDER / "verdicts.json").read_text())
    cases = [
        (name, kind, (FOLDER / f"{name}.json").read_bytes()) for name, kind in verdicts.items()
    ]
    cases += more()
    cases += [(f"mutant-{i}", verdict(data)[0], data) for i, data in enumerate(mutants(2000, 2))]
    for name, _, data in cases:
        (folder / name).write_bytes(data)
    found = {name: kind for name, kind, _ in cases}
    (folder / "verdicts.json").write_text(json.dumps(found))


def write_draws(path: Path) -> None:
    """Logits, options and the tokens that Python draws."""
    with path.open("w") as file:
        for request in sampling_requests():
            file.write(json.dumps({**request, **draws(request)}) + "\n")


def write_lookups(path: Path) -> None:
    """Prompts, the tokens that follow, and after each the most to guess and Python's guesses."""
    generator = random.Random(0)
    with path.open("w") as file:
        for _ in range(200):
            alphabet = generator.choice((2, 4, 12))
            tokens = generator.choices(range(alphabet), k=150)
            lookup, guesses = Lookup(tokens[:50]), []
            for token in tokens[50:]:
                if lookup.known(token) is not None:
                    guesses.append(None)
                    continue
                most = generator.choice((7, 7, 2, 0))
                guessed = lookup.guess(token, most)
                lookup.found(guessed, torch.zeros(1 + len(guessed), 1))
                guesses.append([most, *guessed])
            row = {"prompt": tokens[:50], "tokens": tokens[50:], "guesses": guesses}
            file.write(json.dumps(row) + "\n")


def write_session(
    folder: Path,
    asked: list[tuple[str | None, str]],
    count: int,
    steps: bool = True,
    answers: bool = True,
) -> None:
    """What Python's session makes of ``folder``'s model and package, into its session.json.

    Without a package it is of the bare base model.

    Args:
        asked: tasks, None for the bare base model, and what each is to answer.
        steps: ``count`` greedy tokens, the prompt token by token: whatever the runtime's kernels,
            a call of one token gives the same bits, and so the same ids, on any program.
        answers: whole answers, with the prompt in one call. Sums of several rows may differ in
            their last bits: the same ids on float32, not always where activations are 8-bit.
    """
    package = folder / "package"
    session = Session(folder / "model.pte", package if package.exists() else None)
    rows = []
    for task, text in asked:
        session.use(task)
        ids = session.encode(text)
        row = {"task": task, "text": text, "prompt": ids}
        if steps:
            row["greedy"] = greedy(session, ids, count, step=1)
        if answers:
            answer = session.generate(text, count, temperature=0)
            row["answer"] = "".join(answer)
            row["ids"], row["finish"] = answer.ids, answer.finish
            answer = session.generate(text, count, temperature=0.8, seed=7, top_k=50, top_p=0.95)
            row["drawn_text"], row["drawn"] = "".join(answer), answer.ids
            # Longer, so that there is something to repeat.
            answer = session.generate(text, 2 * count, temperature=0, lookup=True)
            row["looked_up"] = "".join(answer)
            row["lookup_calls"] = session.stats.decode_calls
        rows.append(row)
    (folder / "session.json").write_text(json.dumps({"count": count, "rows": rows}))


def write_self_tests(folder: Path, names: tuple[str, ...]) -> None:
    """What Python finds in packages' golden outputs, into self_test.json."""

    def told(found: SelfTest) -> dict[str, Any]:
        return {**found.as_json(), "text": str(found)}

    tests = {name: told(Session(folder / "model.pte", folder / name).self_test()) for name in names}
    (folder / "self_test.json").write_text(json.dumps(tests))
