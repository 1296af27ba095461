"""Train the example LoRA adapters of SmolLM2-135M-Instruct with PEFT.

    python examples/data/make_data.py --out build/data
    python examples/train_adapters.py --data build/data --out examples/adapters

A task is named as its data: reply is English, reply-de German. Every task starts from the same A
(one seed; a rank below 16 from its first rows), so the adapters suit a shared A. Runs on a GPU
where there is one, else on the CPU in bfloat16. Each adapter is saved in half precision with a
task.json: prompt template, stop strings, provenance and its scores on the held-out rows.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from rich.console import Console
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from hydrapack.adapters.prompt import encode_prompt
from hydrapack.base.smollm2 import NAME, base_model_directory

HERE = Path(__file__).parent
STOP = "<|im_end|>"
TEMPLATE = "<|im_start|>user\n{instruction}\n{{input}}<|im_end|>\n<|im_start|>assistant\n"
MAX_TOKENS = 128
DRAWN_RANK = 16
Example = tuple[list[int], list[int]]  # prompt ids, completion ids

console = Console()


def application(task: str) -> tuple[str, str]:
    """A task's application, as Table 7 of the paper names it, and its language."""
    name, _, language = task.partition("-")
    return {"tone": "tone-professional"}.get(name, name), language or "en"


def template(task: str) -> str:
    """The prompt of Table 7 in SmolLM2's chat form."""
    prompts = json.loads((HERE / "table7.json").read_text(encoding="utf-8"))
    name, language = application(task)
    return TEMPLATE.format(instruction=prompts[name][language])


def load_examples(path: Path, tokenizer: Tokenizer, task: str) -> list[Example]:
    """Rows of at most MAX_TOKENS tokens as (prompt ids, completion ids with the stop token)."""
    examples = []
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        prompt = encode_prompt(tokenizer, template(task), row["input"])
        completion = tokenizer.encode(row["output"] + STOP, add_special_tokens=False).ids
        if len(prompt) + len(completion) <= MAX_TOKENS:
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
    logits = causal.lm_head(hidden[mask])
    return torch.nn.functional.cross_entropy(logits.float(), target.to(device)[mask])


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


def new_adapter(base: torch.nn.Module, rank: int, seed: int) -> torch.nn.Module:
    """The base with a fresh adapter, whose A is the same for every task of a seed.

    Below DRAWN_RANK it is the first rows of the A of that rank: A's initial distribution does not
    depend on the rank.
    """

    def adapter(r: int) -> torch.nn.Module:
        torch.manual_seed(seed)
        config = LoraConfig(
            r=r,
            lora_alpha=4 * r,
            target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
            task_type="CAUSAL_LM",
        )
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


def train(task: str, args: argparse.Namespace, tokenizer: Tokenizer, device: str) -> None:
    examples = load_examples(args.data / f"{task}.jsonl", tokenizer, task)
    heldout = load_examples(HERE / "data" / "heldout" / f"{task}.jsonl", tokenizer, task)
    base = AutoModelForCausalLM.from_pretrained(base_model_directory(), dtype=torch.bfloat16)
    base.to(device)
    before = heldout_loss(base, heldout, device)

    model = new_adapter(base, args.rank, args.seed)
    params = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(params, lr=args.lr, weight_decay=0.0)
    warmup = max(1, args.steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda s: min((s + 1) / warmup, max(0.02, (args.steps - s) / (args.steps - warmup))),
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
    save(model, task, args, {"base": before, "adapter": after}, len(examples))


def save(
    model: torch.nn.Module, task: str, args: argparse.Namespace, scores: dict, rows: int
) -> None:
    out = args.out / task
    model.peft_config["default"].base_model_name_or_path = NAME
    model.save_pretrained(out)
    (out / "README.md").unlink(missing_ok=True)
    weights = out / "adapter_model.safetensors"
    tensors = {k: v.to(torch.bfloat16).contiguous() for k, v in load_file(weights).items()}
    save_file(dict(sorted(tensors.items())), weights, {"format": "pt"})
    card = {
        "prompt_template": template(task),
        "stop": [STOP],
        "language": application(task)[1],
        "license": "Apache-2.0",
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tasks", nargs="*", default=["grammar", "reply", "summary", "tone", "qa"])
    parser.add_argument("--data", type=Path, default=Path("build/data"))
    parser.add_argument("--out", type=Path, default=HERE / "adapters")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = Tokenizer.from_file(str(base_model_directory() / "tokenizer.json"))
    for task in args.tasks:
        train(task, args, tokenizer, device)


if __name__ == "__main__":
    main()
