"""Train the example LoRA adapters with PEFT, of SmolLM2-135M-Instruct or of any base.

    python examples/data/make_data.py --out build/data
    python examples/train_adapters.py --data build/data --out examples/adapters
    python examples/train_adapters.py qa --base Qwen/Qwen2.5-0.5B-Instruct --rank 32 --lr 1e-3

A base is a Hugging Face folder or hub id, or a GGUF file, of which a folder is made beside it. The
prompt is a turn of the base's own chat unless --template says otherwise. A task is named as its
data: reply is English, reply-de German. Every task starts from the same A (one seed; a rank below
16 from its first rows), so the adapters suit a shared A. Runs on a GPU where there is one, else on
the CPU. Each adapter is saved with a task.json: prompt template, stop strings, provenance and its
scores on the held-out rows.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from rich.console import Console
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from hydrapack.adapters.prompt import encode_prompt
from hydrapack.base.gguf import save_as_folder
from hydrapack.base.smollm2 import NAME
from hydrapack.base.source import Source, resolve_model
from hydrapack.program.layout import parse_targets
from hydrapack.support.atomic import new_directory

HERE = Path(__file__).parent
DEMO_TEMPLATE = "<|im_start|>user\n{instruction}\n{input}<|im_end|>\n<|im_start|>assistant\n"
"""Of the examples: SmolLM2's chat form without its system turn."""
DRAWN_RANK = 16
Example = tuple[list[int], list[int]]  # prompt ids, completion ids

console = Console()


@dataclass(frozen=True)
class Base:
    """The model to train on, as a Hugging Face folder, and its chat."""

    name: str
    folder: Path
    tokenizer: Tokenizer
    template: str
    """A prompt with {instruction} and {input}."""
    stop: str


def read_base(args: argparse.Namespace) -> Base:
    """The base that the arguments name; a folder is made of a GGUF file."""
    folder = resolve_model(args.base)
    if folder.is_file():
        gguf, folder = folder, folder.with_suffix("")
        if not folder.exists():
            with new_directory(folder) as partial:
                save_as_folder(gguf, partial)
    source = Source(str(folder))
    described = source.tokenizer()
    tokenizer = Tokenizer.from_buffer(described)
    template = args.template or (DEMO_TEMPLATE if args.base == NAME else "")
    if not template:
        template = source.chat_template(described).replace("{input}", "{instruction}\n{input}")
    if not all(template.count(hole) == 1 for hole in ("{instruction}", "{input}")):
        raise SystemExit(f"{args.base}: no chat template; give --template with both holes")
    ends = source.config.eos_ids
    stop = args.stop or (tokenizer.id_to_token(ends[-1]) if ends else None)
    if not stop:
        raise SystemExit(f"{args.base}: no end token; give --stop")
    name = NAME if args.base == NAME else args.name or source.name
    return Base(name, folder, tokenizer, template, stop)


def application(task: str) -> tuple[str, str, str]:
    """A task's application, as Table 7 of the paper names it, its language and its prompt there."""
    prompts = json.loads((HERE / "table7.json").read_text(encoding="utf-8"))
    name, language = {"tone": "tone-professional"}.get(task, task), "en"
    if name not in prompts:
        name, _, language = name.rpartition("-")
    if language not in prompts.get(name, {}):
        raise SystemExit(f"{task}: Table 7 has no such task; it has {', '.join(prompts)}")
    return name, language, prompts[name][language]


def template(task: str, base: Base) -> str:
    """The prompt of Table 7 in the base's chat form."""
    return base.template.replace("{instruction}", application(task)[2])


def load_examples(path: Path, base: Base, task: str, most: int) -> list[Example]:
    """Rows of at most so many tokens as (prompt ids, completion ids with the stop token)."""
    examples, asked = [], template(task, base)
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        prompt = encode_prompt(base.tokenizer, asked, row["input"])
        told = row["output"] + base.stop
        completion = base.tokenizer.encode(told, add_special_tokens=False).ids
        if len(prompt) + len(completion) <= most:
            examples.append((prompt, completion))
    return examples


def batches(examples: list[Example], size: int, steps: int, seed: int) -> list[list[Example]]:
    """``steps`` batches of rows of similar length, in random order; epochs repeat as needed."""
    rng = random.Random(seed)
    out: list[list[Example]] = []
    while len(out) < steps:
        epoch = examples[:]
        rng.shuffle(epoch)
        pools = [epoch[i : i + 16 * size] for i in range(0, len(epoch), 16 * size)]
        ordered = [e for pool in pools for e in sorted(pool, key=lambda e: len(e[0]) + len(e[1]))]
        chunks = [ordered[i : i + size] for i in range(0, len(ordered), size)]
        rng.shuffle(chunks)
        out.extend(chunks)
    return out[:steps]


def loss(model: torch.nn.Module, batch: list[Example], device: str) -> torch.Tensor:
    """Mean cross-entropy over the completion tokens, which alone reach the vocabulary matrix."""
    width = max(len(p) + len(c) for p, c in batch)
    ids = torch.zeros(len(batch), width, dtype=torch.long)
    target = torch.full((len(batch), width), -100)
    for i, (prompt, completion) in enumerate(batch):
        row = prompt + completion
        ids[i, : len(row)] = torch.tensor(row)
        # Right padding: causal attention keeps it out of every real position.
        target[i, len(prompt) - 1 : len(row) - 1] = torch.tensor(completion)
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    hidden = causal.model(ids.to(device)).last_hidden_state
    mask = (target >= 0).to(device)
    logits = causal.lm_head(hidden[mask]).float()
    if cap := getattr(causal.config, "final_logit_softcapping", None):
        logits = cap * torch.tanh(logits / cap)
    return torch.nn.functional.cross_entropy(logits, target.to(device)[mask])


@torch.no_grad()
def heldout_loss(model: torch.nn.Module, examples: list[Example], device: str) -> float:
    """Nats per completion token over all examples."""
    model.eval()
    total = tokens = 0.0
    for batch in batches(examples, 8, math.ceil(len(examples) / 8), 0):
        count = sum(len(c) for _, c in batch)
        total += loss(model, batch, device).item() * count
        tokens += count
    return total / tokens


def new_adapter(base: torch.nn.Module, args: argparse.Namespace) -> torch.nn.Module:
    """The base with a fresh adapter, whose A is the same for every task of a seed.

    Below DRAWN_RANK it is the first rows of the A of that rank: A's initial distribution does not
    depend on the rank.
    """

    targets = [f"{name}_proj" for name in parse_targets(args.targets)]
    alpha, rank = args.alpha or 4 * args.rank, args.rank

    def adapter(r: int) -> torch.nn.Module:
        torch.manual_seed(args.seed)
        config = LoraConfig(r=r, lora_alpha=alpha, target_modules=targets, task_type="CAUSAL_LM")
        return get_peft_model(base, config)

    model = adapter(max(rank, DRAWN_RANK))
    if rank >= DRAWN_RANK:
        return model
    drawn = {n: p.detach().clone() for n, p in model.named_parameters() if ".lora_A." in n}
    model.unload()
    model = adapter(rank)
    for name, parameter in model.named_parameters():
        if name in drawn:
            parameter.data.copy_(drawn[name][:rank])
    return model


def train(task: str, args: argparse.Namespace, base: Base, device: str) -> None:
    examples = load_examples(args.data / f"{task}.jsonl", base, task, args.max_tokens)
    heldout = load_examples(args.heldout / f"{task}.jsonl", base, task, args.max_tokens)
    if not examples or not heldout:
        raise SystemExit(f"{task}: no rows of at most {args.max_tokens} tokens")
    plain = AutoModelForCausalLM.from_pretrained(base.folder, dtype=getattr(torch, args.dtype))
    plain.to(device)
    before = heldout_loss(plain, heldout, device)

    model = new_adapter(plain, args)
    params = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(params, lr=args.lr, weight_decay=0.0)
    warmup = max(1, args.steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda s: min((s + 1) / warmup, max(0.02, (args.steps - s) / max(1, args.steps - warmup))),
    )
    started = time.monotonic()
    model.train()
    for step, batch in enumerate(batches(examples, args.batch, args.steps, args.seed)):
        value = loss(model, batch, device)
        value.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 20 == 0:
            seconds = time.monotonic() - started
            console.print(f"{task} step {step}/{args.steps} loss {value.item():.3f} {seconds:.0f}s")
    after = heldout_loss(model, heldout, device)
    console.print(f"{task}: held-out loss {before:.3f} -> {after:.3f} nats a token")
    save(model, task, args, base, {"base": before, "adapter": after}, len(examples))


def save(
    model: torch.nn.Module,
    task: str,
    args: argparse.Namespace,
    base: Base,
    scores: dict,
    rows: int,
) -> None:
    out = args.out / task
    model.peft_config["default"].base_model_name_or_path = base.name
    model.save_pretrained(out)
    (out / "README.md").unlink(missing_ok=True)
    weights = out / "adapter_model.safetensors"
    dtype = getattr(torch, args.save_dtype)
    tensors = {k: v.to(dtype).contiguous() for k, v in load_file(weights).items()}
    save_file(dict(sorted(tensors.items())), weights, {"format": "pt"})
    card = {
        "prompt_template": template(task, base),
        "stop": [base.stop],
        "language": application(task)[1],
        "license": args.license or ("Apache-2.0" if base.name == NAME else None),
        "provenance": {
            "script": "examples/train_adapters.py",
            "data": "examples/data/README.md",
            "training_rows": rows,
            "steps": args.steps,
            "batch": args.batch,
            "learning_rate": args.lr,
            "seed": args.seed,
            "heldout_nats_per_token": {k: round(v, 4) for k, v in scores.items()},
        },
    }
    (out / "task.json").write_text(
        json.dumps(card, ensure_ascii=False, indent=2, sort_keys=True) + "\n", encoding="utf-8"
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tasks", nargs="*", default=["grammar", "reply", "summary", "tone", "qa"])
    parser.add_argument("--data", type=Path, default=Path("build/data"))
    parser.add_argument("--out", type=Path, default=HERE / "adapters")
    parser.add_argument("--heldout", type=Path, default=HERE / "data" / "heldout")
    parser.add_argument("--base", default=NAME, help="folder, hub id, GGUF file or the demo's")
    parser.add_argument("--name", help="of the base, in the adapters; a folder's own by default")
    parser.add_argument("--template", help="prompt with {instruction} and {input}")
    parser.add_argument("--stop", help="text that ends an answer; the base's end token by default")
    parser.add_argument("--license", help="SPDX identifier; Apache-2.0 on the demo's base")
    types = {"choices": ["float32", "bfloat16", "float16"], "default": "bfloat16"}
    parser.add_argument("--dtype", **types, help="of the base while training")
    parser.add_argument("--save-dtype", **types, help="of the adapter's file")
    parser.add_argument("--max-tokens", type=int, default=128, help="longer rows are left out")
    parser.add_argument("--targets", default="q,k,v,o")
    parser.add_argument("--alpha", type=int, help="4 times the rank by default")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    base = read_base(args)
    for task in args.tasks:
        train(task, args, base, device)


if __name__ == "__main__":
    main()
