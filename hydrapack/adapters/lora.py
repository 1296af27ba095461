"""The tensors of a PEFT LoRA adapter (``peft.tuners.lora``): A and B by module."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import torch

from hydrapack.adapters.adapter import bare_key, checked
from hydrapack.adapters.patterns import module_alphas
from hydrapack.adapters.peft_config import CONFIG
from hydrapack.adapters.update import LoraModule, Update
from hydrapack.support.errors import Invalid

# Older PEFT wrote the adapter's name ("default") into the key.
_KEY = re.compile(r"(.+)\.lora_([AB])(?:\.[^.]+)?\.weight")
_BASE_LAYER = re.compile(r"(.+)\.base_layer\..+")
_NAME = re.compile(r"[^\s.]+(\.[^\s.]+)*")

OTHER_KEYS: tuple[tuple[str, str, str], ...] = (
    (
        r"lora_embedding_[AB]",
        "adapts an embedding, which has no input to share an A for",
        "retrain without embed_tokens in target_modules",
    ),
    (r"lora_magnitude_vector", "is DoRA's magnitude", "retrain with use_dora=False"),
    (r"lora_B(\.[^.]+)?\.bias$", "is a trained bias", "retrain with lora_bias=False"),
    (r"lora_E|ranknum", "is AdaLoRA's", "retrain as plain LoRA"),
    (r"\.hada_w", "is LoHa's", "retrain as plain LoRA"),
    (r"\.lokr_", "is LoKr's", "retrain as plain LoRA"),
    (r"\.b?oft_", "is OFT's", "retrain as plain LoRA"),
    (r"\.ia3_l", "is IA3's", "retrain as plain LoRA"),
    (r"vera_lambda|vera_[AB]", "is VeRA's", "set peft_type to VERA"),
    (r"lora_diag|lora_kasa", "is KaSA's diagonal", "retrain without kasa_config"),
    (r"prompt_embeddings", "is a trained prompt", "retrain as LoRA"),
    (
        r"\.lora_[ab]$",
        "is of mlx-lm, whose lora_a and lora_b are PEFT's transposed",
        "convert the adapter to PEFT's format, lora_alpha = scale * rank",
    ),
    (
        r"\.lora_[ab]\.weight$",
        "is of torchtune",
        "let torchtune's checkpointer save it in PEFT's format (adapter_model.safetensors)",
    ),
    (
        r"lora_(down|up)|lora\.(down|up)",
        "is of kohya's or an old diffusers' format",
        "convert the adapter to PEFT's format",
    ),
)
"""Keys that are no A or B of a linear: what they are, and how to mend it."""

# Of VeLoRA's backward pass and MonteCLoRA's sampling: training alone needs them.
_TRAINING = re.compile(r"\.lora_(velora|monteclora)_")
_EMBEDDINGS = {"embed_tokens", "embed_in", "embed_out", "embedding", "embeddings", "lm_head"}
_EMBEDDINGS |= {"shared", "token_embedding", "tok_embeddings", "word_embeddings", "wpe", "wte"}


def read_lora(
    tensors: dict[str, torch.Tensor], config: dict[str, Any], path: Path
) -> dict[str, Update]:
    """Modules by name, in the file's precision.

    Raises:
        HydrapackError: keys that are no A or B of a linear, shapes that do not fit, NaN or
            infinity, a rank that the configuration does not give.
    """
    pairs: dict[str, dict[str, torch.Tensor]] = {}
    rest: list[str] = []
    for key in sorted(tensors):
        match = _KEY.fullmatch(bare_key(key))
        if match is None or not _NAME.fullmatch(match[1]) or not match[1].isprintable():
            rest.append(key)
            continue
        tensor = _matrix(tensors[key], key, path)
        name, part = match[1], match[2]
        if part in pairs.setdefault(name, {}):
            raise Invalid(
                f"{path}: {name} has two lora_{part} (a wrapper's prefix, or two adapters in one "
                "file); save one adapter alone"
            )
        pairs[name][part] = tensor
    for expression, what, mend in OTHER_KEYS:
        for key in rest:
            if re.search(expression, key):
                raise Invalid(f"{path}: key {key!r} {what}; {mend}")
    for key in rest:
        _check_rest(key, tensors[key], pairs, path)
    if not pairs:
        raise Invalid(f"{path}: holds no LoRA weights")
    for name, pair in pairs.items():
        _check_pair(name, pair, path)
    ranks = {name: pair["A"].shape[0] for name, pair in pairs.items()}
    alphas = module_alphas(config, ranks, path.parent / CONFIG)
    modules: dict[str, Update] = {}
    for (name, pair), alpha in zip(pairs.items(), alphas, strict=True):
        root = math.sqrt(ranks[name]) if config.get("use_rslora") else ranks[name]
        modules[name] = module = LoraModule(pair["A"], pair["B"], alpha / root)
        _check_size(name, module, path)
    return modules


def _matrix(tensor: torch.Tensor, key: str, path: Path) -> torch.Tensor:
    if tensor.numel() == 0:
        raise Invalid(
            f"{path}: key {key!r} is empty, as DeepSpeed ZeRO-3 and FSDP leave weights that were "
            "not gathered; gather them before saving (GatheredParameters, or "
            "stage3_gather_16bit_weights_on_model_save)"
        )
    if tensor.dim() > 2:
        raise Invalid(
            f"{path}: key {key!r} has {tensor.dim()} dimensions, as LoRA on a convolution or on "
            "experts in one tensor has; retrain with linears alone in target_modules"
        )
    return checked(tensor, 2, key, path)


def _check_rest(
    key: str, tensor: torch.Tensor, pairs: dict[str, dict[str, torch.Tensor]], path: Path
) -> None:
    """Pass over what adds nothing, as a copy of an adapted output layer's own weight; refuse all
    else.
    """
    bare = bare_key(key)
    if _TRAINING.search(bare):
        return
    if (match := _BASE_LAYER.fullmatch(bare)) and match[1] in pairs:
        pair = pairs[match[1]]
        shape = (pair.get("B", tensor).shape[0], pair.get("A", tensor).shape[-1])
        if tensor.is_floating_point() and tensor.dim() == 2 and tuple(tensor.shape) != shape:
            raise Invalid(
                f"{path}: key {key!r} is {tuple(tensor.shape)}, its LoRA is for {shape}: another "
                "vocabulary; save with save_embedding_layers=False"
            )
        return
    *_, layer, kind = ["", *bare.removesuffix(".weight").rsplit(".", 1)]
    if bare.endswith(".weight") and (kind in _EMBEDDINGS or layer.endswith("embeddings")):
        raise Invalid(
            f"{path}: key {key!r} is a whole embedding or output layer, which PEFT saves where the "
            "vocabulary was resized, and which is not merged; save with "
            "save_embedding_layers=False if it was not trained, else train without new tokens"
        )
    if "lora_" not in bare and bare.endswith((".weight", ".bias")):
        raise Invalid(
            f"{path}: key {key!r} is no LoRA A or B of a linear but a whole weight of the model "
            "(modules_to_save, or a trained bias), which is not merged; retrain without it"
        )
    raise Invalid(
        f"{path}: key {key!r} is no LoRA A or B of a linear; save the adapter again with PEFT's "
        "save_pretrained"
    )


def _check_pair(name: str, pair: dict[str, torch.Tensor], path: Path) -> None:
    if len(pair) < 2:
        missing = "B" if "A" in pair else "A"
        raise Invalid(f"{path}: {name} has no lora_{missing}; save the adapter again, whole")
    a, b = pair["A"], pair["B"]
    if a.shape[0] != b.shape[1]:
        raise Invalid(
            f"{path}: {name}: A {tuple(a.shape)} and B {tuple(b.shape)} do not fit; "
            "(rank, d_in) and (d_out, rank) are expected"
        )


def _check_size(name: str, module: LoraModule, path: Path) -> None:
    """Refuse an update whose values, or those of any factorization, may pass float32."""
    largest = [float(t.abs().max().double()) for t in (module.A, module.B)]
    d_out, d_in = module.shape
    # Bounds the Frobenius norm, and both factors times the scaling.
    bound = max(largest[0], 1.0) * max(largest[1], 1.0) * max(abs(module.scaling), 1.0)
    bound *= module.rank * math.sqrt(d_out * d_in) if largest[1] and largest[0] else 0.0
    if not bound < torch.finfo(torch.float32).max:
        raise Invalid(
            f"{path}: {name}: its update, {module.scaling:g} * B @ A with values up to "
            f"{largest[1]:.3g} and {largest[0]:.3g}, exceeds single precision; is lora_alpha right?"
        )
