"""Writes docs/adapters.md from the tables that the code itself reads by."""

from __future__ import annotations

import re
from pathlib import Path

from hydrapack.adapters.adapter import WRAPPERS
from hydrapack.adapters.files import INDEX, OTHER_FORMATS, WEIGHTS
from hydrapack.adapters.lora import OTHER_KEYS
from hydrapack.adapters.peft_config import CHANGING_INITS, HARMLESS, KINDS, REFUSED, SAFE_INITS

TARGET = Path(__file__).parent / "adapters.md"
RELEASES = "## Old releases of PEFT"

TAKEN = [
    ("kinds", "peft_type " + ", ".join(KINDS) + " on linears of any model"),
    ("weights", f"`{WEIGHTS}`, or shards with `{INDEX}`"),
    ("types", "float32, float64, float16, bfloat16, float8 (e4m3fn, e5m2 and their fnuz kinds)"),
    ("`init_lora_weights`", "true, false, " + ", ".join(f"`{init}`" for init in SAFE_INITS)),
    ("scale", "`lora_alpha` (any finite number), `use_rslora`, `rank_pattern`, `alpha_pattern`"),
    ("names of wrappers", ", ".join(f"`{name}.`" for name in WRAPPERS) + ": taken off in any key"),
    ("LoRA on `lm_head`", "merged and unpacked; PEFT's copy of the base's weight is left out"),
    (
        "ranks",
        "any, each module its own; the rank of the weights must be the one that `r` and "
        "`rank_pattern` give",
    ),
    ("`task_type`, `revision`", "any; kept, also null, and written by `unpack`"),
]

OTHER_REFUSALS = [
    (
        "`init_lora_weights`: " + ", ".join(f"`{init}`" for init in CHANGING_INITS),
        "the base's weights were changed, and the adapter belongs to the changed ones",
        "`save_pretrained(path_initial_model_for_weight_conversion=…)`; true, if "
        "`base_model_name_or_path` is the changed base itself",
    ),
    ("`bias` other than `none`", "trained biases are not merged", "retrain with bias='none'"),
    (
        "any other key with a value",
        "it may change what the adapter computes",
        "take it out of the file if it does not",
    ),
    (
        "another rank than `r` or `rank_pattern` give",
        "alpha / r is not known; PEFT refuses it too",
        "put back the configuration it was saved with",
    ),
    (
        "an `alpha_pattern` that PEFT before 0.15 read otherwise",
        "the file does not say which release trained it",
        "name modules in full, or add `peft_version`",
    ),
    (
        "a pattern that is no regular expression (`*q_proj`)",
        "PEFT's patterns are not a shell's",
        "write `.*` for `*`",
    ),
    ("`lora_alpha` NaN, infinite or huge", "no update is that large", "mend the number"),
    (
        "empty tensors",
        "DeepSpeed ZeRO-3 and FSDP leave them where weights were not gathered",
        "gather before saving",
    ),
    ("NaN or infinity", "the training broke down", "retrain or re-save"),
    ("tensors of 3 dimensions and more", "convolutions, experts", "target linears alone"),
    (
        "whole embeddings (`embed_tokens.weight`, `lm_head.weight`)",
        "PEFT saves them where the vocabulary was resized",
        "save with `save_embedding_layers=False`, or train without new tokens",
    ),
    ("other whole weights", "`modules_to_save`, trained biases", "retrain without them"),
    ("Git LFS pointers", "the clone has no files", "`git lfs pull`"),
    ("web pages in place of files", "the download went wrong", "`hf download`"),
    ("`adapter_model.bin`", "pickles are not read", "load and save again with PEFT"),
    ("a folder above the adapter's, a file, a hub id", "no adapter folder", "the message names it"),
    (
        "adapters of other base models or revisions",
        "a shared A is of one base",
        "`--allow-base-mismatch`, if they are one",
    ),
    (
        "two names of one module, or no module in common",
        "nothing would be shared",
        "load one on the other's model and save it again",
    ),
    (
        "a `task.json` of another tool",
        "beside an adapter it holds hydrapack's settings of the task",
        "rename or remove it",
    ),
]


def page() -> str:
    """The page without the part on old releases, which is measured."""
    lines = ["# Adapters", ""]
    lines += ["What is read, what is refused and how to mend it. A refusal is one line and exit"]
    lines += ["code 2. Written by `docs/make_adapters.py` from the tables in the code.", ""]
    lines += ["## Taken", "", "| what | which |", "|---|---|"]
    lines += [f"| {what} | {which} |" for what, which in TAKEN]
    lines += ["", "Keys of adapter_config.json that may have any value (those on rank and scale"]
    lines += ["within their type):", ""]
    lines += ["| keys | say |", "|---|---|"]
    lines += [f"| {_code(keys)} | {why} |" for why, keys in HARMLESS.items()]
    lines += ["", "## Refused", "", "| what | why | how to mend it |", "|---|---|---|"]
    lines += [f"| `{key}` | {why} | {mend} |" for key, (why, mend) in REFUSED.items()]
    lines += [f"| {what} | {why} | {mend} |" for what, why, mend in OTHER_REFUSALS]
    lines += [f"| keys with `{_plain(e)}` | {what} | {mend} |" for e, what, mend in OTHER_KEYS]
    lines += [
        f"| `{n}` alone | {whose} format | convert it |" for n, whose in OTHER_FORMATS.items()
    ]
    lines += ["| `pack`: `lm_head` and other linears | the base program adapts q, k, v, o, "]
    lines[-1] += "gate, up, down, and qkv and gate_up | `unpack` writes PEFT adapters |"
    lines += ["", "A module that only some adapters have gets zeros for the others; `pack` puts"]
    lines += ["zeros where the model has a layer that no adapter touches (the count of layers from"]
    lines += [
        "`--model`). `unpack` leaves out what its task leaves alone, and its target_modules is"
    ]
    lines += ["one regular expression that matches the modules of the file and no others.", ""]
    return "\n".join(lines)


def _code(keys: str) -> str:
    return ", ".join(f"`{key}`" for key in sorted(keys.split()))


def _plain(expression: str) -> str:
    """A regular expression of the code as a reader takes it."""
    text = re.sub(r"\(\\\.\[\^\.\]\+\)\?|\\|\$", "", expression)
    return text.replace("|", "\\|")


def measured(text: str) -> str:
    """The part of the page on old releases."""
    return text[text.index(RELEASES) :] if RELEASES in text else ""


if __name__ == "__main__":
    old = TARGET.read_text(encoding="utf-8") if TARGET.exists() else ""
    rest = measured(old)
    TARGET.write_text(page() + ("\n" + rest if rest else ""), encoding="utf-8", newline="\n")
