"""Which rank and alpha a configuration gives each module, as the releases of PEFT read it.

The keys of rank_pattern and alpha_pattern are regular expressions on the module's name. Until 0.13
the first key of either that matched was the one for both; until 0.14 a key had to follow a dot;
since 0.15 it may also be the whole name. Only a few files say which release wrote them, so the
rank in the file decides, and where that leaves two alphas the adapter is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from hydrapack.adapters.peft_config import shown
from hydrapack.support.errors import Invalid

# PEFT 0.15 and later write these keys, whatever their values.
_SINCE_0_15 = ("peft_version", "corda_config", "trainable_token_indices")
Settings = tuple[int, float]
"""Rank and alpha of a module."""


def module_alphas(config: Mapping[str, Any], ranks: Mapping[str, int], path: Path) -> list[float]:
    """lora_alpha of each module, in the order of ``ranks`` (the file's, by module name).

    Raises:
        HydrapackError: a rank that the configuration does not give, or alphas that depend on the
            release of PEFT.
    """
    found: list[list[float]] = []
    for meaning in _meanings(config):
        settings = [meaning(config, name) for name in ranks]
        if [rank for rank, _ in settings] == list(ranks.values()):
            found.append([alpha for _, alpha in settings])
    if not found:
        name, rank, said = next(
            (name, rank, said)
            for name, rank in ranks.items()
            if (said := _today(config, name)[0]) != rank
        )
        raise Invalid(
            f"{path}: says rank {said} for {name} (r = {shown(config.get('r', 8))}, rank_pattern), "
            f"its weights have rank {rank}: the scale alpha / r is not known; put back the "
            "configuration that the adapter was saved with"
        )
    for other in found[1:]:
        for name, one, two in zip(ranks, found[0], other, strict=True):
            if one != two:
                raise Invalid(
                    f"{path}: alpha_pattern gives {name} alpha {one:g} in PEFT since 0.15 and "
                    f"{two:g} before; name the modules in full, without rank_pattern keys that "
                    "match them otherwise, or add the peft_version that trained it"
                )
    return found[0]


def _meanings(
    config: Mapping[str, Any],
) -> list[Callable[[Mapping[str, Any], str], Settings]]:
    if any(key in config for key in _SINCE_0_15):
        return [_today]
    return [_today, _of_0_14, _before_0_14]


def _today(config: Mapping[str, Any], name: str) -> Settings:
    keys = [_first(_patterns(config, part), r"(.*\.)?({})$", name) for part in ("rank", "alpha")]
    return _settings(config, *keys)


def _of_0_14(config: Mapping[str, Any], name: str) -> Settings:
    keys = [_first(_patterns(config, part), r".*\.{}$", name) for part in ("rank", "alpha")]
    return _settings(config, *keys)


def _before_0_14(config: Mapping[str, Any], name: str) -> Settings:
    both = [*_patterns(config, "rank"), *_patterns(config, "alpha")]
    key = _first(both, r".*\.{}$", name)
    return _settings(config, key, key)


def _settings(config: Mapping[str, Any], rank_key: str, alpha_key: str) -> Settings:
    rank = _patterns(config, "rank").get(rank_key, config.get("r", 8))
    alpha = _patterns(config, "alpha").get(alpha_key, config.get("lora_alpha", 8))
    return rank, float(alpha)


def _patterns(config: Mapping[str, Any], part: str) -> dict[str, Any]:
    return config.get(f"{part}_pattern") or {}


def _first(keys: Iterable[str], form: str, name: str) -> str:
    """The first key that matches in the release's ``form``; the name itself if none does."""
    for key in keys:
        try:
            if re.match(form.replace("{}", key), name):
                return key
        except re.error:
            continue
    return name
