"""What old releases of PEFT write, merged, unpacked and loaded by the release that wrote it.

    python benchmarks/old_peft.py 0.17.1 0.14.0 [--keep FOLDER] [--with transformers==4.46.3 ...]

Each release is installed alone (--no-deps) into a folder of its own, which stands before this
environment's packages on PYTHONPATH; ``--with`` adds packages beside it, where an old PEFT asks for
an old transformers. Prints a Markdown table for docs/adapters.md. Needs a package index.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
LLAMA, QV = "LlamaForCausalLM", ["q_proj", "v_proj"]
CASES = {
    "default": (LLAMA, {}),
    "gaussian": (LLAMA, {"init_lora_weights": "gaussian"}),
    "rsLoRA": (LLAMA, {"use_rslora": True}),
    "rank pattern": (LLAMA, {"rank_pattern": {"layers.1.self_attn.q_proj": 2}}),
    "alpha pattern": (LLAMA, {"alpha_pattern": {"v_proj": 20}}),
    "both patterns": (
        LLAMA,
        {"rank_pattern": {"q_proj": 7}, "alpha_pattern": {"layers.1.self_attn.q_proj": 3}},
    ),
    "pattern of a whole name": (
        LLAMA,
        {"alpha_pattern": {"^model.layers.0.self_attn.q_proj": 3}},
    ),
    "layers_to_transform": (LLAMA, {"layers_to_transform": [1]}),
    "all linears": (LLAMA, {"target_modules": "all-linear"}),
    "lm_head": (LLAMA, {"target_modules": ["q_proj", "lm_head"]}),
    "bare model": ("LlamaModel", {"task_type": "FEATURE_EXTRACTION"}),
    "BERT": ("BertModel", {"target_modules": ["query", "value"], "task_type": None}),
    "T5": ("T5ForConditionalGeneration", {"target_modules": ["q", "v"], "task_type": None}),
    "DoRA": (LLAMA, {"use_dora": True}),
    "PiSSA": (LLAMA, {"init_lora_weights": "pissa"}),
}
# What a release says of a case that it does not know.
UNKNOWN = ("unexpected keyword argument", "Unknown initialization")
# Old releases ask today's torchao for names that it has no more; without it they do not.
sys.modules["torchao"] = None  # type: ignore[assignment]


def write(folder: Path) -> None:
    """With the old release: every case's two adapters, and what the model with them gives."""
    import peft
    import torch
    from peft_models import build, output, train

    for name, (base, changes) in CASES.items():
        config = {"r": 4, "lora_alpha": 8, "target_modules": QV, "task_type": "CAUSAL_LM"}
        for seed in (1, 2):
            target = folder / name / f"a{seed}"
            try:
                lora = peft.LoraConfig(**{**config, **changes})
                model = train(peft.get_peft_model(build(base), lora), seed)
                model.save_pretrained(target, safe_serialization=True)
                torch.save(output(model), folder / name / f"a{seed}.pt")
            except (TypeError, ValueError) as error:
                if not any(words in str(error) for words in UNKNOWN):
                    raise
                (folder / f"{name}.none").write_text(str(error))
                break


def load(folder: Path) -> None:
    """With the old release: largest difference of the unpacked adapters' outputs, as JSON."""
    import peft
    import torch
    from peft_models import build, output

    found = {}
    for name, (base, _) in CASES.items():
        if not (folder / name / "unpacked").exists():
            continue
        differences = []
        for seed in (1, 2):
            expected = torch.load(folder / name / f"a{seed}.pt")
            own = folder / name / "unpacked" / f"a{seed}"
            given = output(peft.PeftModel.from_pretrained(build(base), str(own)))
            differences.append(float((given - expected).abs().max()))
        found[name] = max(differences)
    (folder / "differences.json").write_text(json.dumps(found))


def merge(folder: Path) -> dict[str, str]:
    """With this release: every case merged at full rank and unpacked; refusals by case."""
    from hydrapack.adapters.collect import read_adapters
    from hydrapack.bundle.unpack import unpack
    from hydrapack.merging.uniform import merge_adapters
    from hydrapack.support.errors import HydrapackError

    refused = {}
    for name in CASES:
        if (folder / f"{name}.none").exists():
            continue
        try:
            adapters = read_adapters([str(folder / name / f"a{seed}") for seed in (1, 2)])
        except HydrapackError as error:
            refused[name] = str(error).partition(".json: ")[2] or str(error)
            continue
        merge_adapters(adapters, rank=64).save(folder / name / "bundle")
        unpack(folder / name / "bundle", folder / name / "unpacked")
    return refused


def release(version: str, packages: list[str], keep: Path) -> dict[str, str]:
    """One column of the table: what became of each case."""
    site, folder = keep / f"peft-{version}", keep / f"adapters-{version}"
    if not site.exists():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", site]
        subprocess.run([*map(str, pip), f"peft=={version}", *packages], check=True)
    folder.mkdir(parents=True)
    paths = os.pathsep.join(map(str, (site, ROOT / "tests", ROOT)))
    env = {**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(Path(__file__).resolve())]
    subprocess.run([*command, "--write", str(folder)], env=env, check=True)
    refused = merge(folder)
    subprocess.run([*command, "--load", str(folder)], env=env, check=True)
    differences = json.loads((folder / "differences.json").read_text())
    column = {}
    for name in CASES:
        if (folder / f"{name}.none").exists():
            column[name] = "not of this release"
        elif name in refused:
            column[name] = "refused: " + refused[name].split()[0]
        else:
            column[name] = f"{differences[name]:.0e}"
    return column


def main() -> None:
    """Print the table of all releases named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("releases", nargs="*")
    parser.add_argument("--with", dest="packages", nargs="*", default=[])
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--load", type=Path)
    given = parser.parse_args()
    if given.write or given.load:
        write(given.write) if given.write else load(given.load)
        return
    sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory() as temporary:
        keep = given.keep or Path(temporary)
        columns = [release(version, given.packages, keep) for version in given.releases]
    print("| adapter | " + " | ".join(f"PEFT {version}" for version in given.releases) + " |")
    print("|---|" + "---|" * len(columns))
    for name in CASES:
        print(f"| {name} | " + " | ".join(column[name] for column in columns) + " |")


if __name__ == "__main__":
    main()
