"""Arbitrary adapter_config.json and tensors: read, or refused in one line; never a traceback."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from conftest import hydrapack, module_names, write_adapter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from hydrapack.adapters.collect import read_adapters
from hydrapack.adapters.peft_config import CHANGING_INITS, HARMLESS, REFUSED, SAFE_INITS
from hydrapack.bundle.unpack import unpack
from hydrapack.merging.uniform import merge_adapters
from hydrapack.support.errors import HydrapackError

FILE, CONFIG = "adapter_model.safetensors", "adapter_config.json"
NAMES = module_names("qv")
KEYS = [key for keys in HARMLESS.values() for key in keys.split()]
KEYS += [*REFUSED, "bias", "init_lora_weights", "fine_tune_type"]

texts = st.one_of(
    st.sampled_from(
        [*SAFE_INITS, *CHANGING_INITS, "LORA", "VERA", "none", "all", "CAUSAL_LM", "main", ""]
    ),
    st.sampled_from(["*q_proj", "q_proj", ".*", r"layers\.0\..*", "a|b", "(", "two\nlines"]),
    st.text(max_size=8),
)
numbers = st.one_of(
    st.integers(-2, 9),
    st.floats(),
    st.sampled_from([10**400, -(10**400), 1 << 63, 1e308, 5e-324]),
)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(texts, inner, max_size=2),
    max_leaves=4,
)
configs = st.one_of(
    st.dictionaries(st.sampled_from(KEYS) | texts, values, max_size=2),
    st.fixed_dictionaries({"rank_pattern": st.dictionaries(texts, numbers, max_size=2)}),
    st.fixed_dictionaries({"alpha_pattern": st.dictionaries(texts, numbers, max_size=2)}),
)
raw_files = st.one_of(
    st.binary(max_size=40), st.just(b"[" * 100_000), st.just(b'{"r": ' + b"9" * 9999 + b"}")
)

DTYPES = [
    torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.bool,
    torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz, torch.float8_e8m0fnu,
]  # fmt: skip
names = st.one_of(
    st.sampled_from(NAMES),
    st.sampled_from(["lm_head", "model.embed_tokens", "module.x", "a..b", "", "vera_A", "x.A"]),
    st.text(max_size=6),
)
ENDINGS = """.lora_A.weight .lora_B.weight .lora_A.default.weight .lora_a .lora_down.weight
.base_layer.weight .weight .bias .lora_embedding_A .lora_magnitude_vector .vera_lambda_b"""
endings = st.sampled_from([*ENDINGS.split(), ""])
prefixes = st.sampled_from(["base_model.model.", "", "_orig_mod.base_model.model.", "module."])
keys = st.tuples(prefixes, names, endings).map("".join)
shapes = st.lists(st.sampled_from([0, 1, 2, 4, 32, 64]), max_size=4)
fills = st.sampled_from([0.0, 1.0, -0.5, 1e-30, 1e30, 3e38, math.inf, math.nan])
tensors = st.dictionaries(keys, st.tuples(shapes, fills, st.sampled_from(DTYPES)), max_size=2)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return write_adapter(tmp_path_factory.mktemp("fuzz") / "good", 1, names=NAMES)


def changed(good: Path, folder: Path, config, more, removed: int) -> Path:
    """A copy of the adapter with another configuration, and some tensors more or fewer."""
    shutil.copytree(good, folder)
    if isinstance(config, bytes):
        (folder / CONFIG).write_bytes(config)
    else:
        whole = {**json.loads((good / CONFIG).read_text()), **config}
        (folder / CONFIG).write_text(json.dumps(whole))
    held = load_file(folder / FILE)
    for key in sorted(held)[:removed]:
        held.pop(key)
    for key, (shape, fill, dtype) in more.items():
        held[key] = torch.full(shape, fill).to(dtype)
    try:
        save_file(held, folder / FILE)
    except Exception:
        # A name that safetensors itself does not write.
        save_file(load_file(good / FILE), folder / FILE)
    return folder


def check(good, config, more, removed, weights=None):
    """Read, merge, unpack and read again, or one HydrapackError and nothing written."""
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        folder = changed(good, root / "odd", config, more, removed)
        if weights is not None:
            (folder / FILE).write_bytes(weights)
        out = root / "bundle"
        try:
            adapters = read_adapters([str(folder), str(good)], allow_base_mismatch=True)
            merge_adapters(adapters).save(out)
        except HydrapackError as error:
            assert str(error).strip() and len(str(error).splitlines()) == 1
            assert sorted(p.name for p in root.iterdir()) == ["odd"]
            return False
        unpack(out, root / "all")
        assert read_adapters([str(root / "all" / "odd"), str(root / "all" / "good")])
        return True


def examples(count):
    return settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def run(good, count):
    taken = []

    @examples(count // 2)
    @given(configs | raw_files)
    def of_configs(config):
        taken.append(check(good, config, {}, 0))

    @examples(count // 2)
    @given(tensors, st.integers(0, 2), st.none() | st.binary(max_size=60))
    def of_tensors(more, removed, weights):
        taken.append(check(good, {}, more, removed, weights))

    of_configs()
    of_tensors()
    # The fuzz reaches both ends.
    assert any(taken) and not all(taken)


def test_fuzz(good):
    run(good, 200)


@pytest.mark.slow
def test_fuzz_at_length(good):
    run(good, 5000)


@pytest.mark.parametrize(
    "config",
    [
        {"lora_alpha": math.nan},
        {"peft_type": "a\nb"},
        {"rank_pattern": {"\n(": 1}},
        {"\ud800": 1},
        {"alpha_pattern": {"q_proj": 10**400}},
        b"[" * 100_000,
        b"\xff\xfe",
    ],
)
def test_the_command(config, good, tmp_path):
    """What the functions promise, the command keeps: exit code 2, one line, nothing written."""
    folder = changed(good, tmp_path / "a", config, {}, 0)
    done = hydrapack("merge", folder, good, "-o", tmp_path / "b")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("hydrapack: error: ") and not os.path.lexists(tmp_path / "b")
