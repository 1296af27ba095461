"""``adapter_config.json``: which keys are harmless, and which are refused by name.

PEFT's file has a key for every variant of LoRA that it knows. One that changes what the adapter
computes must not be passed over: a key that is neither known here nor empty is refused.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from hydrapack.support.errors import Invalid

CONFIG = "adapter_config.json"
KINDS = ("LORA", "VERA")

HARMLESS: dict[str, str] = {
    "how the adapter is named": (
        "auto_mapping base_model_class base_model_name_or_path peft_type peft_version revision "
        "task_type transformers_version"
    ),
    "what was adapted, which the weights say themselves": (
        "exclude_modules layers_pattern layers_to_transform target_modules ensure_weight_tying"
    ),
    "rank and scale, which are read": "r lora_alpha use_rslora rank_pattern alpha_pattern",
    "how it was trained": (
        "corda_config eva_config inference_mode init_weights loftq_config lora_dropout "
        "lora_ga_config monteclora_config runtime_config velora_config vera_dropout"
    ),
    "how it runs, not what it computes": (
        "megatron_config megatron_core merge_weights qalora_group_size"
    ),
    "VeRA's own": "d_initial projection_prng_key save_projection",
    "of other trainers": (
        "lora_dtype loraplus_lr_ratio lorap_emb_lr lorap_lr_ratio unsloth_fixed unsloth_version"
    ),
}
"""Keys of PEFT 0.1 to 0.21 and of trainers that write its file; any value will do."""

REFUSED: dict[str, tuple[str, str]] = {
    "use_dora": (
        "DoRA's magnitudes have no place in a shared A",
        "retrain with use_dora=False",
    ),
    "alora_invocation_tokens": (
        "Activated LoRA acts only after its invocation tokens, a merged adapter on every token",
        "retrain without alora_invocation_tokens",
    ),
    "use_qalora": (
        "QALoRA's A takes pooled inputs",
        "retrain with use_qalora=False",
    ),
    "use_bdlora": (
        "BD-LoRA's A or B is block-diagonal",
        "retrain without use_bdlora",
    ),
    "kasa_config": (
        "KaSA changes the base's weights and puts a diagonal between A and B",
        "retrain without kasa_config",
    ),
    "arrow_config": (
        "Arrow routes each token to experts of its own",
        "merge the experts' own adapters",
    ),
    "modules_to_save": (
        "whole saved modules are not merged",
        "retrain without modules_to_save",
    ),
    "trainable_token_indices": (
        "trained embeddings are not merged",
        "retrain without trainable_token_indices",
    ),
    "target_parameters": (
        "LoRA on parameters (the experts of a mixture) is not supported",
        "retrain with target_modules alone",
    ),
    "layer_replication": (
        "replicated layers are not supported",
        "retrain on the model as it is",
    ),
    "fan_in_fan_out": (
        "transposed (Conv1D) linears, as GPT-2's, are not supported",
        "take a base model of nn.Linear; where the base has no Conv1D, set it to false",
    ),
    "lora_bias": (
        "trained biases are not merged",
        "retrain with lora_bias=False",
    ),
    "enable_lora": (
        "LoRA on parts of a fused linear, as PEFT 0.1 had it, is not supported",
        "retrain with a newer PEFT",
    ),
}
"""Keys whose value, if any, changes the arithmetic: why, and how to mend it."""

SAFE_INITS = ("eva", "gaussian", "mica", "orthogonal")
"""Values of init_lora_weights, beside true and false, that leave the base as it is."""
CHANGING_INITS = ("corda", "loftq", "lora_ga", "olora", "pissa", "pissa_niter_16")
"""Those that change the base's weights, so that the adapter belongs to another base."""
_CHANGING = re.compile(r"corda|loftq|lora[-_]?ga|olora|pissa", re.IGNORECASE)

_KNOWN = {key for keys in HARMLESS.values() for key in keys.split()}
_KNOWN |= {"bias", "init_lora_weights"}


def read_config(folder: Path) -> dict[str, Any]:
    """The adapter's configuration, all keys that are read later checked.

    Raises:
        HydrapackError: not readable, of another kind, or with a key that changes the arithmetic.
    """
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise Invalid(f"{path}: not readable JSON: {error}") from error
    if not isinstance(config, dict):
        raise Invalid(f"{path}: holds no JSON object")
    if "peft_type" not in config and {"fine_tune_type", "lora_parameters"} & set(config):
        raise Invalid(
            f"{path}: is of mlx-lm (fine_tune_type), not PEFT's; convert the adapter to PEFT's "
            "format: lora_a and lora_b transposed, as lora_A.weight and lora_B.weight, and "
            "lora_alpha = scale * rank"
        )
    _check_kind(config, path)
    _check_values(config, path)
    return config


def _check_kind(config: dict[str, Any], path: Path) -> None:
    kind = str(config.get("peft_type") or "").upper()
    if kind not in KINDS:
        found = shown(config["peft_type"]).strip('"') if kind else "missing"
        raise Invalid(f"{path}: peft_type is {found}; only LORA and VERA are read")
    for key, (why, mend) in REFUSED.items():
        # An empty variant's config still turns the variant on.
        if config.get(key) or config.get(key) == {}:
            raise Invalid(f"{path}: {key} = {shown(config[key])}: {why}; {mend}")
    if config.get("bias", "none") != "none":
        raise Invalid(
            f"{path}: bias = {shown(config['bias'])}: trained biases are not merged; retrain with "
            "bias='none'"
        )
    _check_init(config.get("init_lora_weights", True), path)
    for key in sorted(set(config) - _KNOWN - set(REFUSED)):
        if config[key]:
            raise Invalid(
                f"{path}: {shown(key)} = {shown(config[key])}: an unknown key, which may change "
                "what the adapter computes; if it does not, take it out of the file"
            )


def _check_init(init: object, path: Path) -> None:
    if init is None or isinstance(init, bool):
        return
    if isinstance(init, str) and init.lower() in SAFE_INITS:
        return
    if isinstance(init, str) and _CHANGING.match(init):
        raise Invalid(
            f"{path}: init_lora_weights = {shown(init)} changes the base's weights, and the "
            "adapter belongs to the changed ones; convert it with "
            "save_pretrained(path_initial_model_for_weight_conversion=...) or, if "
            "base_model_name_or_path is the changed base itself, set init_lora_weights to true"
        )
    raise Invalid(
        f"{path}: init_lora_weights = {shown(init)}: an unknown initialisation, which may have "
        "changed the base's weights; set it to true if it did not"
    )


def _check_values(config: dict[str, Any], path: Path) -> None:
    if not _is_rank(config.get("r", 8)):
        raise Invalid(f"{path}: r = {shown(config['r'])}: must be a whole number above 0")
    check_number(config.get("lora_alpha", 8), "lora_alpha", path)
    if not isinstance(config.get("use_rslora", False), bool | None):
        raise Invalid(f"{path}: use_rslora = {shown(config['use_rslora'])}: true or false")
    for key in ("rank_pattern", "alpha_pattern"):
        patterns = config.get(key) or {}
        if not isinstance(patterns, dict):
            raise Invalid(f"{path}: {key} has the wrong type: {shown(patterns)}")
        for pattern, value in patterns.items():
            where = f"{key} of {shown(pattern)}"
            if key == "alpha_pattern":
                check_number(value, where, path)
            elif not _is_rank(value):
                raise Invalid(f"{path}: {where} = {shown(value)}: must be a whole number above 0")
            try:
                re.compile(rf"(.*\.)?({pattern})$")
            except (re.error, OverflowError, RecursionError) as error:
                raise Invalid(
                    f"{path}: {key}: the key {shown(pattern)} is no regular expression ({error}); "
                    "PEFT's patterns are not those of a shell: write '.*' for '*'"
                ) from error
    for key in ("base_model_name_or_path", "revision", "task_type"):
        value = config.get(key)
        if value is not None and not (isinstance(value, str) and (value.isprintable())):
            raise Invalid(f"{path}: {key} = {shown(value)}: is no name")


def check_number(value: object, name: str, path: Path) -> None:
    """Refuse what is no finite number.

    Raises:
        HydrapackError: it is not.
    """
    try:
        finite = isinstance(value, int | float) and math.isfinite(float(value))
    except OverflowError:
        finite = False
    if isinstance(value, bool) or not finite:
        raise Invalid(f"{path}: {name} = {shown(value)}: must be a finite number")


def _is_rank(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 1 << 20


def shown(value: object, most: int = 80) -> str:
    """A value of the file on one line, cut where it is long."""
    try:
        text = json.dumps(value)
    except (ValueError, RecursionError):
        text = "a value of many digits or levels"
    return text if len(text) <= most else text[: most - 1] + "…"
