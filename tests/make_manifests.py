"""Write tests/manifests: what both runtimes must accept or refuse. python tests/make_manifests.py

Every file breaks one rule or none, and all that can have a right package_digest have one.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).with_name("manifests")
DIGEST = "0123456789abcdef" * 4
LINE = re.compile(rb'\n  "package_digest": "([0-9a-f]{64})')
TEXT = 1 << 20


def manifest() -> dict[str, Any]:
    """A manifest of one layer and one target, two tasks on two heads."""
    from hydrapack.program.layout import Layout

    def task(name: str, head: int) -> dict[str, Any]:
        generation = {"max_new_tokens": 64, "temperature": 0.7, "top_k": 40, "top_p": 0.9}
        return {
            "generation": generation,
            "language": "en",
            "merge_relative_error": 0.125,
            "name": name,
            "packed_relative_error": 0.25,
            "prompt_template": "<|user|>{input}<|end|>",
            "route": [head],
            "stop": ["<|end|>", "\n\n"],
        }

    return {
        "base_model": {"id": "tiny/llama", "tokenizer_sha256": None, "weights_sha256": DIGEST},
        "fallback": "error",
        "files": [
            {"bytes": 4096, "name": "adapters.pte", "sha256": DIGEST},
            {"bytes": 0, "name": "README.md", "sha256": DIGEST},
        ],
        "group_size": 32,
        "heads": 2,
        "hydrapack_version": "0.1.0",
        "layout_digest": Layout(layers=1, rank=4, shapes=(("q", (64, 64)),)).digest,
        "modules": [
            {
                "bits_a": 8,
                "bits_b": 8,
                "heads": 2,
                "name": "model.layers.0.self_attn.q_proj",
                "output_rank": 0,
                "rank": 4,
            }
        ],
        "package_digest": "0" * 64,
        "rank": 4,
        "schema_version": 1,
        "sources": [
            {
                "alpha": 8.0,
                "base_model": "tiny/llama",
                "digest": DIGEST,
                "license": None,
                "parameters": 512,
                "rank": 4,
                "task": "one",
            }
        ],
        "storage": {
            "baseline_bytes": 2048,
            "baseline_parameters": 1024,
            "bytes": 4096,
            "parameters": 768,
            "s_percent": 75.0,
            "tensor_bytes": 900,
        },
        "target_modules": ["q"],
        "target_shapes": [[64, 64]],
        "tasks": [task("one", 0), task("two", 1)],
        "tools": {"executorch": "1.5.1", "torch": "2.13.0"},
    }


def text(content: Any, sort: bool = True) -> bytes:
    """As hydrapack writes it, before it is sealed."""
    written = json.dumps(content, ensure_ascii=False, indent=2, sort_keys=sort) + "\n"
    return written.encode("utf-8", "surrogatepass")


def sealed(data: bytes) -> bytes:
    """With the right package_digest, where there is a line for it."""
    found = LINE.search(data)
    if found is None:
        return data
    bare = data[: found.start(1)] + data[found.end(1) :]
    digest = hashlib.sha256(bare).hexdigest().encode()
    return data[: found.start(1)] + digest + data[found.end(1) :]


def changed(
    *path: str | int, to: Any = None, drop: bool = False, content: dict[str, Any] | None = None
) -> bytes:
    """The manifest with the value at ``path`` replaced or dropped."""
    content = content or manifest()
    *parents, last = path
    at: Any = content
    for key in parents:
        at = at[key]
    if drop:
        del at[last]
    else:
        at[last] = to
    return sealed(text(content))


def edited(old: str, new: str) -> bytes:
    """The manifest's text with one piece replaced."""
    data = text(manifest())
    assert old.encode() in data, old
    return sealed(data.replace(old.encode(), new.encode("utf-8", "surrogatepass"), 1))


def nested(depth: int) -> bytes:
    """An unknown key that makes the file's own depth ``depth``."""
    value: Any = 0
    for _ in range(depth - 1):
        value = [value]
    return changed("unknown", to=value)


def repeated(key: str, items: Callable[[dict[str, Any]], list[Any]]) -> bytes:
    content = manifest()
    content[key] = items(content)
    return sealed(text(content))


def two_tasks(first: str, second: str, fallback: str = "error") -> bytes:
    content = manifest()
    content["tasks"][0]["name"], content["tasks"][1]["name"] = first, second
    content["fallback"] = fallback
    return sealed(text(content))


def banked(*path: str | int, to: Any = None, drop: bool = False) -> bytes:
    """``changed`` of a manifest that says where the heads lie: 2 of 512 and of 64 bytes."""
    content = manifest()
    content["head_banks"] = {"offsets": [1024, 2048], "shared_sha256": DIGEST}
    content["modules"][0]["pieces"] = [[0, 512], [1, 64]]
    for task in content["tasks"]:
        task["head_sha256"] = DIGEST
    return changed(*path, to=to, drop=drop, content=content)


def small() -> Iterator[tuple[str, str, bytes]]:
    """(name, verdict, bytes) of the committed files."""
    good = sealed(text(manifest()))
    yield "good", "Ok", good
    yield "digest-wrong", "Mismatch", good.replace(b'"rank": 4', b'"rank": 5')
    yield "digest-wrong-in-an-ignored-key", "Mismatch", good.replace(b"0.1.0", b"0.1.1")
    yield "digest-space-added", "Mismatch", good + b" "
    yield (
        "digest-line-indented-otherwise",
        "Invalid",
        good.replace(b'\n  "package_digest"', b'\n   "package_digest"'),
    )
    yield "digest-compact", "Invalid", json.dumps(manifest()).encode()
    yield "digest-crlf", "Ok", sealed(text(manifest()).replace(b"\n", b"\r\n"))
    yield "digest-unsorted-keys", "Ok", sealed(text(dict(reversed(manifest().items())), False))
    # Only raw bytes with the 64 digits count, and the first of them.
    yield (
        "digest-short-line-first",
        "Ok",
        edited('{\n  "base_model"', '{"before": {\n  "package_digest": "abc"},\n  "base_model"'),
    )
    yield (
        "digest-line-in-an-object-first",
        "Mismatch",
        sealed(text(manifest())).replace(
            b'{\n  "base_model"',
            b'{"before": {\n  "package_digest": "' + DIGEST.encode() + b'"},\n  "base_model"',
        ),
    )
    yield "digest-wrong-and-rank-wrong", "Invalid", good.replace(b'"rank": 4', b'"rank": 0')

    yield "empty", "Invalid", b""
    yield "spaces", "Invalid", b" \n"
    yield "null", "Invalid", b"null\n"
    yield "list", "Invalid", b"[" + good + b"]"
    yield "text", "Invalid", b'"manifest"'
    yield "cut", "Invalid", good[: len(good) // 2]
    yield "trailing-text", "Invalid", sealed(text(manifest()) + b"x")
    yield "trailing-object", "Invalid", sealed(text(manifest()) + b"{}")
    yield "trailing-nul", "Invalid", sealed(text(manifest()) + b"\0")
    yield "byte-order-mark", "Invalid", sealed(b"\xef\xbb\xbf" + text(manifest()))
    yield "utf-16", "Invalid", text(manifest()).decode().encode("utf-16-le")
    yield "utf8-overlong", "Invalid", sealed(text(manifest()).replace(b"0.1.0", b"\xc0\xaf"))
    yield "utf8-cut", "Invalid", sealed(text(manifest()).replace(b"0.1.0", b"\xe2\x82"))
    yield "utf8-surrogate", "Invalid", edited("0.1.0", "\ud800")
    yield (
        "utf8-above-10ffff",
        "Invalid",
        sealed(text(manifest()).replace(b"0.1.0", b"\xf4\x90\x80\x80")),
    )
    yield "utf8-four-bytes", "Ok", edited("0.1.0", "\U0001f600 \U0010ffff")
    yield "escaped-surrogate-lone", "Invalid", edited("0.1.0", "\\ud83d")
    yield "escaped-surrogate-low-lone", "Invalid", edited("0.1.0", "\\ude00")
    yield "escaped-surrogates-swapped", "Invalid", edited("0.1.0", "\\ude00\\ud83d")
    yield "escaped-surrogate-lone-in-a-key", "Invalid", edited('"tools"', '"x\\uD800": 1, "tools"')
    yield "escaped-surrogate-pair", "Ok", edited("0.1.0", "\\ud83d\\ude00")
    yield "escaped-backslash-before-u", "Ok", edited("0.1.0", "\\\\ud83d")
    yield "escaped-nul", "Ok", edited("0.1.0", "\\u0000")
    yield "escape-unknown", "Invalid", edited("0.1.0", "\\x41")
    yield "escape-short", "Invalid", edited("0.1.0", "\\u12")
    yield "control-in-text", "Invalid", edited("0.1.0", "a\tb")
    yield "newline-in-text", "Invalid", edited("0.1.0", "a\nb")
    yield "delete-in-text", "Ok", edited("0.1.0", "a\x7fb")
    yield "form-feed-between", "Invalid", edited('"tools": ', '"tools":\f ')
    yield "no-break-space-between", "Invalid", edited('"tools": ', '"tools":\u00a0')
    yield "comment", "Invalid", edited('{\n  "base', '{ // why\n  "base')
    yield "comment-block", "Invalid", edited('{\n  "base', '{ /* why */\n  "base')
    yield "comma-at-the-end", "Invalid", edited('"torch": "2.13.0"', '"torch": "2.13.0",')
    yield "single-quotes", "Invalid", edited('"0.1.0"', "'0.1.0'")
    yield "nan", "Invalid", edited("75.0", "NaN")
    yield "infinity", "Invalid", edited("75.0", "Infinity")
    yield "minus-infinity", "Invalid", edited("75.0", "-Infinity")
    yield "true-in-capitals", "Invalid", edited("75.0", "True")
    yield "number-beyond-a-double", "Invalid", edited("75.0", "1e400")
    yield "integer-beyond-a-double", "Invalid", edited("75.0", "1" + "0" * 400)
    yield "number-of-the-largest-double", "Ok", edited("75.0", "-1.7976931348623157e308")
    yield "number-too-small-for-a-double", "Ok", edited("75.0", "1e-400")
    yield "integer-beyond-64-bits-unused", "Ok", edited("75.0", "1" + "0" * 300)
    yield "number-leading-zero", "Invalid", edited("75.0", "075.0")
    yield "number-leading-plus", "Invalid", edited("75.0", "+75.0")
    yield "number-bare-point", "Invalid", edited("75.0", "75.")
    yield "number-hexadecimal", "Invalid", edited("75.0", "0x4b")
    yield (
        "key-twice",
        "Invalid",
        edited('"rank": 4,\n  "schema', '"rank": 4,\n  "rank": 4,\n  "schema'),
    )
    yield "key-twice-in-an-ignored-object", "Invalid", edited('"torch"', '"executorch": 1, "torch"')
    yield "key-twice-by-an-escape", "Invalid", edited('"torch"', '"executorc\\u0068": 1, "torch"')
    yield "depth-64", "Ok", nested(64)
    yield "depth-65", "Invalid", nested(65)
    yield "brackets-in-a-text", "Ok", edited("0.1.0", '[{\\"' * 100)

    yield "unknown-key", "Ok", changed("unknown", to={"a": [1, None, True]})
    yield "unknown-key-in-a-task", "Ok", changed("tasks", 0, "unknown", to=1)
    yield "unused-keys-of-other-types", "Ok", changed("sources", to="none")
    yield "unused-keys-missing", "Ok", changed("storage", drop=True)
    yield "metadata", "Ok", changed("metadata", to={"release": "2026-07", "n": [1, {}]})
    yield "lost-tasks", "Ok", changed("lost_tasks", to=["two"])
    yield "package-version", "Ok", changed("package_version", to=3)
    yield "channel", "Ok", changed("channel", to="beta")
    yield "stored-heads", "Ok", changed("modules", 0, "stored_heads", to=1)
    yield "head_banks", "Ok", banked("rank", to=4)
    yield "head_banks-null", "Invalid", banked("head_banks", to=None)
    yield "head_banks-list", "Invalid", banked("head_banks", to=[])
    yield "head_banks-missing", "Invalid", banked("head_banks", drop=True)
    yield "head_banks-one-too-few", "Invalid", banked("head_banks", "offsets", to=[1024])
    yield "head_banks-one-more", "Ok", banked("head_banks", "offsets", to=[1024, 2048, 4096])
    yield "head_banks-none", "Invalid", banked("head_banks", "offsets", to=[])
    yield "head_banks-side-by-side", "Ok", banked("head_banks", "offsets", to=[0, 1024])
    yield "head_banks-overlap", "Invalid", banked("head_banks", "offsets", to=[1025, 2048])
    yield "head_banks-swapped", "Invalid", banked("head_banks", "offsets", to=[2048, 1024])
    yield "head_banks-to-the-end", "Ok", banked("head_banks", "offsets", to=[0, 3968])
    yield "head_banks-beyond-the-end", "Invalid", banked("head_banks", "offsets", to=[0, 3969])
    yield "head_banks-negative", "Invalid", banked("head_banks", "offsets", to=[-1, 2048])
    yield "head_banks-beyond-a-file", "Invalid", banked("head_banks", "offsets", to=[0, 1 << 40])
    yield "head_banks-float", "Invalid", banked("head_banks", "offsets", to=[0, 2048.0])
    yield "head_banks-digest-short", "Invalid", banked("head_banks", "shared_sha256", to="ab")
    yield "head_banks-no-digest", "Invalid", banked("head_banks", "shared_sha256", drop=True)
    yield "head_banks-unknown-key", "Ok", banked("head_banks", "more", to=1)
    yield "head_sha256-missing", "Invalid", banked("tasks", 1, "head_sha256", drop=True)
    yield "head_sha256-null", "Invalid", banked("tasks", 1, "head_sha256", to=None)
    yield "head_sha256-short", "Invalid", banked("tasks", 1, "head_sha256", to=DIGEST[1:])
    yield "head_sha256-alone", "Ok", changed("tasks", 1, "head_sha256", to=DIGEST)
    yield "head_sha256-alone-number", "Invalid", changed("tasks", 1, "head_sha256", to=1)
    yield "head_sha256-alone-null", "Ok", changed("tasks", 1, "head_sha256", to=None)
    for name, verdict, pieces in (
        ("missing", "Ok", None),
        ("none", "Ok", []),
        ("object", "Invalid", {}),
        ("numbers", "Invalid", [0, 512]),
        ("three", "Invalid", [[0, 512, 1]]),
        ("short", "Invalid", [[0]]),
        ("empty", "Invalid", [[]]),
        ("of-no-bank", "Invalid", [[2, 1]]),
        ("negative", "Invalid", [[-1, 1]]),
        ("true", "Invalid", [[False, 512]]),
        ("of-no-bytes", "Ok", [[0, 0]]),
        ("most-bytes", "Invalid", [[1, (1 << 31) - 1]]),
        ("beyond", "Invalid", [[1, 1 << 31]]),
        ("twice-in-a-bank", "Ok", [[0, 256], [0, 256], [1, 64]]),
        ("eight", "Ok", [[0, 1]] * 8),
        ("nine", "Invalid", [[0, 1]] * 9),
    ):
        case = banked("modules", 0, "pieces", to=pieces, drop=pieces is None)
        yield f"pieces-{name}", verdict, case
    yield "pieces-alone", "Invalid", changed("modules", 0, "pieces", to=[[0, 1]])
    yield "pieces-alone-none", "Ok", changed("modules", 0, "pieces", to=[])
    yield "pieces-alone-null", "Invalid", changed("modules", 0, "pieces", to=None)
    yield "metadata-empty", "Ok", changed("metadata", to={})
    yield "metadata-null", "Invalid", changed("metadata", to=None)
    yield "metadata-list", "Invalid", changed("metadata", to=[])

    for name, value in (("2", 2), ("0", 0), ("true", True), ("text", "1"), ("float", 1.0)):
        yield f"schema_version-{name}", "Invalid", changed("schema_version", to=value)
    yield (
        "schema_version-exponent",
        "Invalid",
        edited('"schema_version": 1', '"schema_version": 1e0'),
    )
    yield "layout_digest-capitals", "Invalid", changed("layout_digest", to=DIGEST.upper())
    yield "layout_digest-short", "Invalid", changed("layout_digest", to=DIGEST[1:])
    yield "layout_digest-newline", "Invalid", changed("layout_digest", to=DIGEST + "\n")
    yield "package_digest-capitals", "Invalid", changed("package_digest", to="A" * 64)
    for name, value in (("0", 0), ("65537", 65537), ("true", True), ("float", 4.0), ("null", None)):
        yield f"rank-{name}", "Invalid", changed("rank", to=value)
    yield "rank-text", "Invalid", changed("rank", to="4")
    yield "rank-beyond-64-bits", "Invalid", changed("rank", to=(1 << 64) + 4)
    yield "rank-65536", "Ok", changed("rank", to=65536)
    yield "heads-4097", "Invalid", changed("heads", to=4097)
    yield "heads-4096", "Ok", changed("heads", to=4096)
    yield "heads-fewer-than-a-modules", "Invalid", changed("heads", to=1)
    yield "base_model-list", "Invalid", changed("base_model", to=[])
    yield "base_model-id-null", "Invalid", changed("base_model", "id", to=None)
    yield "base_model-id-empty", "Ok", changed("base_model", "id", to="")
    yield "base_model-id-1000-bytes", "Ok", changed("base_model", "id", to="é" * 500)
    yield "base_model-id-1001-bytes", "Invalid", changed("base_model", "id", to="é" * 500 + "x")
    yield "base_model-weights-short", "Invalid", changed("base_model", "weights_sha256", to="ab")
    yield (
        "base_model-tokenizer-false",
        "Invalid",
        changed("base_model", "tokenizer_sha256", to=False),
    )
    yield "modules-empty", "Invalid", repeated("modules", lambda c: [])
    yield "modules-object", "Invalid", changed("modules", to={})
    yield "modules-of-numbers", "Invalid", changed("modules", to=[2])
    yield "module-heads-0", "Invalid", changed("modules", 0, "heads", to=0)
    yield "module-heads-true", "Invalid", changed("modules", 0, "heads", to=True)

    yield "tasks-empty", "Invalid", changed("tasks", to=[])
    yield "task-name-empty", "Invalid", changed("tasks", 0, "name", to="")
    yield "task-name-200-bytes", "Ok", changed("tasks", 0, "name", to="é" * 100)
    yield "task-name-201-bytes", "Invalid", changed("tasks", 0, "name", to="é" * 100 + "x")
    yield "task-name-number", "Invalid", changed("tasks", 0, "name", to=1)
    yield "task-name-twice", "Invalid", two_tasks("one", "one")
    yield "template-without-hole", "Invalid", changed("tasks", 0, "prompt_template", to="x")
    yield (
        "template-two-holes",
        "Invalid",
        changed("tasks", 0, "prompt_template", to="{input}{input}"),
    )
    yield "template-null", "Invalid", changed("tasks", 0, "prompt_template", to=None)
    yield "stop-none", "Ok", changed("tasks", 0, "stop", to=[])
    yield "stop-empty-text", "Invalid", changed("tasks", 0, "stop", to=["a", ""])
    yield "stop-text", "Invalid", changed("tasks", 0, "stop", to="end")
    yield "stop-number", "Invalid", changed("tasks", 0, "stop", to=[1])
    yield "language-null", "Ok", changed("tasks", 0, "language", to=None)
    yield "language-number", "Invalid", changed("tasks", 0, "language", to=1)
    yield "route-short", "Invalid", changed("tasks", 0, "route", to=[])
    yield "route-long", "Invalid", changed("tasks", 0, "route", to=[0, 0])
    yield "route-negative", "Invalid", changed("tasks", 0, "route", to=[-1])
    yield "route-beyond", "Invalid", changed("tasks", 0, "route", to=[2])
    yield "route-float", "Invalid", changed("tasks", 0, "route", to=[1.0])
    yield "route-false", "Invalid", changed("tasks", 0, "route", to=[False])
    yield "route-minus-zero", "Ok", edited('"route": [\n        0', '"route": [\n        -0')

    def generation(key: str, value: Any) -> bytes:
        return changed("tasks", 0, "generation", key, to=value)

    yield "generation-list", "Invalid", changed("tasks", 0, "generation", to=[])
    yield "max_new_tokens-0", "Invalid", generation("max_new_tokens", 0)
    yield "max_new_tokens-most", "Ok", generation("max_new_tokens", 1 << 20)
    yield "max_new_tokens-beyond", "Invalid", generation("max_new_tokens", (1 << 20) + 1)
    yield "max_new_tokens-float", "Invalid", generation("max_new_tokens", 8.0)
    yield "temperature-integer", "Ok", generation("temperature", 1)
    yield "temperature-100", "Ok", generation("temperature", 100)
    yield "temperature-minus-zero", "Ok", generation("temperature", -0.0)
    yield "temperature-below-0", "Invalid", generation("temperature", -1e-9)
    yield "temperature-beyond", "Invalid", generation("temperature", 100.0001)
    yield "temperature-huge-integer", "Invalid", generation("temperature", 10**300)
    yield "temperature-true", "Invalid", generation("temperature", True)
    yield "temperature-text", "Invalid", generation("temperature", "0.5")
    yield "top_k-below-0", "Invalid", generation("top_k", -1)
    yield "top_k-most", "Ok", generation("top_k", 1 << 20)
    yield "top_k-beyond", "Invalid", generation("top_k", (1 << 20) + 1)
    yield "top_p-1", "Ok", generation("top_p", 1)
    yield "top_p-0", "Invalid", generation("top_p", 0)
    yield "top_p-rounds-to-0", "Invalid", edited('"top_p": 0.9', '"top_p": 1e-400')
    yield "top_p-tiny", "Ok", generation("top_p", 1e-300)
    yield "top_p-beyond", "Invalid", generation("top_p", 1.0000001)
    yield "top_p-null", "Invalid", generation("top_p", None)

    yield "fallback-base", "Ok", changed("fallback", to="base")
    yield "fallback-a-task", "Ok", changed("fallback", to="two")
    yield "fallback-no-task", "Invalid", changed("fallback", to="three")
    yield "fallback-empty", "Invalid", changed("fallback", to="")
    yield "fallback-null", "Invalid", changed("fallback", to=None)
    yield "fallback-base-is-a-task-too", "Ok", two_tasks("base", "two", "base")
    yield "fallback-error-is-a-task-too", "Ok", two_tasks("error", "two", "error")

    yield "files-empty", "Invalid", changed("files", to=[])
    yield "files-without-adapters", "Invalid", changed("files", 0, "name", to="other.pte")
    yield "files-twice", "Invalid", changed("files", 1, "name", to="adapters.pte")
    yield "file-name-path", "Invalid", changed("files", 1, "name", to="../x")
    yield "file-name-manifest", "Invalid", changed("files", 1, "name", to="manifest.json")
    yield "file-name-201", "Invalid", changed("files", 1, "name", to="x" * 201)
    yield "file-name-200", "Ok", changed("files", 1, "name", to="x" * 200)
    yield "file-bytes-below-0", "Invalid", changed("files", 0, "bytes", to=-1)
    yield "file-bytes-most", "Ok", changed("files", 0, "bytes", to=(1 << 40) - 1)
    yield "file-bytes-beyond", "Invalid", changed("files", 0, "bytes", to=1 << 40)
    yield "file-bytes-float", "Invalid", changed("files", 0, "bytes", to=4096.0)
    yield "file-sha256-null", "Invalid", changed("files", 0, "sha256", to=None)


def more() -> Iterator[tuple[str, str, bytes]]:
    """(name, verdict, bytes) of those too large to commit, or too alike."""
    for key in (
        "schema_version", "package_digest", "layout_digest", "rank", "heads", "base_model",
        "modules", "tasks", "fallback", "files",
    ):  # fmt: skip
        yield f"missing-{key}", "Invalid", changed(key, drop=True)
    for key in ("id", "weights_sha256", "tokenizer_sha256"):
        yield f"missing-base_model-{key}", "Invalid", changed("base_model", key, drop=True)
    for key in ("name", "prompt_template", "stop", "generation", "language", "route"):
        yield f"missing-task-{key}", "Invalid", changed("tasks", 1, key, drop=True)
    for key in ("max_new_tokens", "temperature", "top_k", "top_p"):
        yield (
            f"missing-generation-{key}",
            "Invalid",
            changed("tasks", 0, "generation", key, drop=True),
        )
    for key in ("bytes", "name", "sha256"):
        yield f"missing-file-{key}", "Invalid", changed("files", 1, key, drop=True)
    yield "missing-module-heads", "Invalid", changed("modules", 0, "heads", drop=True)

    for number, name in enumerate(
        (
            "../x",
            "a/b",
            "a\\b",
            ".hidden",
            "",
            "-x",
            "a b",
            "é",
            "x\n",
            "a\0",
            "manifest.json",
            "x" * 201,
        )
    ):
        yield f"file-name-{number}", "Invalid", changed("files", 1, "name", to=name)
    yield (
        "depth-100000",
        "Invalid",
        edited('"tools": {', '"deep": ' + "[" * 100000 + ', "tools": {'),
    )

    good, most = text(manifest()), 64 << 20
    yield "64-mib", "Ok", sealed(good + b" " * (most - len(good)))
    yield "above-64-mib", "Invalid", sealed(good + b" " * (most - len(good) + 1))
    for size, verdict in ((TEXT, "Ok"), (TEXT + 1, "Invalid")):
        kept = "é" * (size // 2) + "x" * (size % 2)
        template = "{input}" + kept[: (size - 7) // 2] + "x" * ((size - 7) % 2)
        yield f"template-{size}", verdict, changed("tasks", 0, "prompt_template", to=template)
        yield f"stop-{size}", verdict, changed("tasks", 0, "stop", to=[kept])
        yield f"language-{size}", verdict, changed("tasks", 0, "language", to=kept)
    for count, verdict in ((65536, "Ok"), (65537, "Invalid")):
        yield f"stops-{count}", verdict, changed("tasks", 0, "stop", to=["x"] * count)
        files = [{"bytes": 1, "name": f"f{i}", "sha256": DIGEST} for i in range(count - 1)]
        yield f"files-{count}", verdict, repeated("files", lambda c, f=files: [c["files"][0], *f])

        content = manifest()
        content["modules"] = content["modules"] * count
        for task in content["tasks"]:
            task["route"] = [0] * count
        yield f"modules-{count}", verdict, sealed(text(content))

        def many(content: dict[str, Any], count: int = count) -> list[Any]:
            task = copy.deepcopy(content["tasks"][0])
            return [{**task, "name": f"t{i}"} for i in range(count)]

        yield f"tasks-{count}", verdict, repeated("tasks", many)


def corpus() -> dict[str, bytes]:
    """The content of tests/manifests, by file name."""
    cases = list(small())
    found = {f"{name}.json": data for name, _, data in cases}
    assert len(found) == len(cases), "a name twice"
    verdicts = {name: verdict for name, verdict, _ in cases}
    found["verdicts.json"] = (json.dumps(verdicts, indent=2, sort_keys=True) + "\n").encode()
    return found


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for old in FOLDER.glob("*.json"):
        old.unlink()
    for name, data in corpus().items():
        (FOLDER / name).write_bytes(data)
