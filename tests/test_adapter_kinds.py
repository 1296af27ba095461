"""Adapters as people have them, beside PEFT's own: read rightly, or refused by name in one line."""

from __future__ import annotations

import json
import math
import shutil

import pytest
import torch
from conftest import DIM, LAYERS, edit_config, edit_tensors, hydrapack, module_names, write_adapter
from safetensors.torch import load_file, save_file

from hydrapack.adapters.collect import read_adapters
from hydrapack.adapters.peft_config import CHANGING_INITS, HARMLESS, REFUSED, SAFE_INITS
from hydrapack.adapters.read import read_adapter
from hydrapack.bundle.format import Bundle
from hydrapack.bundle.unpack import unpack
from hydrapack.merging.add import add
from hydrapack.merging.methods import METHODS
from hydrapack.merging.uniform import merge_adapters
from hydrapack.packing.package import pack
from hydrapack.support.errors import HydrapackError

FILE = "adapter_model.safetensors"


def refused(folder, match):
    with pytest.raises(HydrapackError, match=match) as caught:
        read_adapter(folder, "t")
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


def merged(folders, target, **options):
    adapters = read_adapters([str(f) for f in folders])
    merge_adapters(adapters, **options).save(target)
    return Bundle.load(target)


# --- adapter_config.json


@pytest.mark.parametrize("key", REFUSED)
def test_a_key_that_changes_the_arithmetic(key, tmp_path):
    folder = write_adapter(tmp_path / "a")
    for nothing in (None, False, []):
        read_adapter(edit_config(folder, **{key: nothing}), "t")
    for value in (True, [1], {"x": 1}):
        refused(edit_config(folder, **{key: value}), f"{key} = ")


def test_unknown_keys(tmp_path):
    folder = write_adapter(tmp_path / "a")
    read_adapter(edit_config(folder, use_magic=False, magic_config=None, magic=[]), "t")
    refused(edit_config(folder, magic={"strength": 2}), r'"magic" = \{"strength": 2\}: an unknown')
    refused(edit_config(folder, magic=None, use_magic="yes"), "use_magic.*an unknown key")


def test_every_key_of_the_installed_peft_is_known():
    """A key that a new PEFT adds has to be judged before it is taken."""
    import peft

    known = {key for keys in HARMLESS.values() for key in keys.split()}
    known |= {*REFUSED, "bias", "init_lora_weights"}
    for config in (peft.LoraConfig(), peft.VeraConfig()):
        assert set(config.to_dict()) <= known
        for key, value in config.to_dict().items():
            assert key not in REFUSED or not value


def test_inits(tmp_path):
    folder = write_adapter(tmp_path / "a")
    for init in (None, True, False, *SAFE_INITS, "Gaussian"):
        read_adapter(edit_config(folder, init_lora_weights=init), "t")
    for init in (*CHANGING_INITS, "PiSSA", "pissa_niter_4"):
        refused(edit_config(folder, init_lora_weights=init), f'"{init}" changes the base')
    for init in ("new", 3, ["pissa"]):
        refused(edit_config(folder, init_lora_weights=init), "unknown initialisation")


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("r", [0, -1, 2.0, True, None, "4", [4]]),
        ("lora_alpha", [math.nan, math.inf, -math.inf, 10**400, "8", None, True, [8]]),
        ("rank_pattern", [[1], "q", 3, {"q_proj": 0}, {"q_proj": None}, {"q_proj": 2.5}]),
        (
            "alpha_pattern",
            [["q"], {"q_proj": None}, {"q_proj": "16"}, {"q_proj": math.nan}, {"q_proj": True}],
        ),
        ("use_rslora", ["yes", 1.5, [1]]),
        ("base_model_name_or_path", [3, ["x"], "two\nlines", "\ud800"]),
        ("revision", [3, "a\nb"]),
        ("task_type", [3, "a\nb"]),
        ("peft_type", [3, "LO\nRA", None, ["LORA"]]),
        ("bias", ["lora_only", None, 1]),
    ],
)
def test_values_of_another_type(key, values, tmp_path):
    folder = write_adapter(tmp_path / "a")
    for value in values:
        refused(edit_config(folder, **{key: value}), key)


@pytest.mark.parametrize("key", ["rank_pattern", "alpha_pattern"])
@pytest.mark.parametrize("pattern", ["*q_proj", "(q_proj", "[q", "q_proj+*", "a{2,1}"])
def test_patterns_that_are_no_regular_expression(key, pattern, tmp_path):
    folder = edit_config(write_adapter(tmp_path / "a"), **{key: {pattern: 4}})
    refused(folder, f"{key}: the key .* is no regular expression")


def test_a_rank_that_the_configuration_does_not_give(tmp_path):
    folder = write_adapter(tmp_path / "a", rank=4)
    refused(edit_config(folder, r=16), r"says rank 16 for .* its weights have rank 4")
    read_adapter(edit_config(folder, r=16, rank_pattern={"[qkvo]_proj": 4}), "t")
    refused(edit_config(folder, r=4, rank_pattern={"q_proj": 8}), "says rank 8 for .*q_proj")
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    del config["r"], config["rank_pattern"]
    path.write_text(json.dumps(config))
    refused(folder, r"says rank 8 for .* \(r = 8")


@pytest.mark.parametrize(
    ("patterns", "old"),
    [
        # Since 0.15 a key may be the whole name; before, something had to precede it.
        ({"alpha_pattern": {"^model.layers.0.self_attn.q_proj": 32}}, True),
        # Until 0.13 the first key of either pattern was the key of both.
        (
            {
                "rank_pattern": {"q_proj": 4},
                "alpha_pattern": {"layers.0.self_attn.q_proj": 32},
            },
            True,
        ),
        ({"alpha_pattern": {"model.layers.0.self_attn.q_proj": 32}}, False),
        ({"alpha_pattern": {"layers.0.self_attn.q_proj": 32}}, False),
    ],
)
def test_patterns_as_each_release_means_them(patterns, old, tmp_path):
    """Read where all agree or the release is known, refused where alpha hangs on it."""
    folder = edit_config(write_adapter(tmp_path / "a", rank=4), **patterns)
    name = "model.layers.0.self_attn.q_proj"
    if old:
        refused(folder, "alpha_pattern gives model.layers.0.self_attn.q_proj alpha 32")
        edit_config(folder, peft_version="0.18.0")
    adapter = read_adapter(folder, "t")
    assert adapter.modules[name].scaling == 8
    assert adapter.modules[name.replace("0", "1")].scaling == 2


# --- weights


@pytest.mark.parametrize(
    "kind", ["float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"]
)
def test_float8(kind, tmp_path):
    folder = write_adapter(tmp_path / "a")
    path = folder / FILE
    half = {k: v.to(getattr(torch, kind)) for k, v in load_file(path).items()}
    save_file(half, path)
    adapter = read_adapter(folder, "t")
    name = module_names()[0]
    expected = half[f"base_model.model.{name}.lora_A.weight"].float()
    assert expected.any() and torch.equal(adapter.modules[name].A.float(), expected)
    bundle = merged([folder, write_adapter(tmp_path / "b", 2)], tmp_path / "bundle", rank=8)
    assert max(t.relative_error for t in bundle.info.tasks) < 1e-5
    half[f"base_model.model.{name}.lora_A.weight"].view(torch.uint8)[0, 0] = {
        "float8_e4m3fn": 0x7F,
        "float8_e5m2": 0x7C,
    }.get(kind, 0x80)
    save_file(half, path)
    refused(folder, "NaN or infinity")


def test_types_that_are_not_read(tmp_path):
    folder = write_adapter(tmp_path / "a")
    path = folder / FILE
    tensors = load_file(path)
    for kind in (torch.int8, torch.complex64, torch.bool):
        save_file({k: v.to(kind) for k, v in tensors.items()}, path)
        refused(folder, "floating-point matrix")
    save_file({k: v.to(torch.float8_e8m0fnu) for k, v in tensors.items()}, path)
    refused(folder, "'F8_E8M0' are not read; save as float32")


def test_products_that_overflow(tmp_path):
    folder = edit_config(write_adapter(tmp_path / "a"), lora_alpha=1e39)
    refused(folder, "exceeds single precision; is lora_alpha right")
    edit_config(folder, lora_alpha=8)
    edit_tensors(folder, lambda t: [v.fill_(1e25) for v in t.values()])
    refused(folder, "exceeds single precision")
    zero = edit_config(write_adapter(tmp_path / "zero"), lora_alpha=1e300)
    edit_tensors(zero, lambda t: [v.zero_() for k, v in t.items() if "lora_B" in k])
    assert read_adapter(zero, "t").modules


def test_packing_what_half_precision_scales_cannot_hold(tmp_path):
    folder = edit_config(write_adapter(tmp_path / "a"), lora_alpha=1e9)
    bundle = merged([folder], tmp_path / "bundle")
    for bits in (4, 8, 16):
        with pytest.raises(HydrapackError, match=f"{bits} bits hold up to .*`bits` 32"):
            pack(bundle, tmp_path / "package", bits)
    assert pack(bundle, tmp_path / "package", 32).manifest.tasks[0].packed_relative_error < 1e-5


def put(key, shape=(4, 4)):
    return lambda t: t.update({key: torch.ones(shape)})


def rename(old, new):
    return lambda t: [t.update({k.replace(old, new): t.pop(k)}) for k in list(t)]


def empty(tensors):
    tensors.update({key: torch.zeros(0) for key in tensors})


BASE = "base_model.model."
NAME = BASE + module_names()[0]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (empty, "is empty, as DeepSpeed ZeRO-3"),
        (put(f"{NAME}.lora_A.weight", (0, DIM)), "is empty"),
        (put(f"{NAME}.lora_A.weight", (4, DIM, 3, 3)), "4 dimensions, as LoRA on a convolution"),
        (put(f"{BASE}model.embed_tokens.weight"), "vocabulary was resized"),
        (put(f"{BASE}lm_head.weight"), "save_embedding_layers=False"),
        (put(f"{BASE}transformer.wte.weight"), "whole embedding"),
        (put(f"{BASE}bert.embeddings.word_embeddings.weight"), "whole embedding"),
        (put(f"{BASE}lm_head.base_layer.weight"), "no LoRA A or B"),
        (put(f"{NAME}.base_layer.weight", (9, 9)), "another vocabulary"),
        (put(f"{BASE}score.weight"), "modules_to_save"),
        (put(f"{NAME}.bias", (4,)), "trained bias"),
        (put(f"{NAME}.lora_B.bias", (4,)), "lora_bias=False"),
        (put(f"{NAME}.lora_magnitude_vector", (4,)), "DoRA"),
        (put(f"{BASE}model.embed_tokens.lora_embedding_A"), "adapts an embedding"),
        (put(f"{NAME}.lora_E"), "AdaLoRA"),
        (put(f"{NAME}.hada_w1_a"), "LoHa"),
        (put(f"{NAME}.lokr_w1"), "LoKr"),
        (put(f"{NAME}.vera_lambda_b", (4,)), "peft_type to VERA"),
        (rename(".lora_A.weight", ".lora_a"), "mlx-lm"),
        (rename(".lora_B.weight", ".lora_b.weight"), "torchtune"),
        (rename(".lora_A.weight", ".lora_down.weight"), "kohya"),
        (rename("q_proj", "soft_lokr_ia3_l"), None),
        (rename(".lora_A.", ".lora_A.one."), None),
        (put(f"{NAME}.lora_A.other.weight", (4, DIM)), "two lora_A"),
        (put("base_model.model.a b.lora_A.weight"), "no LoRA A or B"),
        (put("base_model.model.a..b.lora_A.weight"), "no LoRA A or B"),
    ],
)
def test_keys_and_shapes(change, match, tmp_path):
    folder = edit_tensors(write_adapter(tmp_path / "a"), change)
    if match is None:
        assert len(read_adapter(folder, "t").modules) == len(module_names())
    else:
        refused(folder, match)


def test_wrappers_that_make_two_of_one(tmp_path):
    key = f"{NAME}.lora_A.weight"
    folder = edit_tensors(
        write_adapter(tmp_path / "a"), lambda t: t.update({"_orig_mod." + key: t[key].clone()})
    )
    refused(folder, "two lora_A")


# --- files and folders


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 13648432\n"
HTML = b"\n<!DOCTYPE html>\n<html><head><title>Hub</title></head></html>"


@pytest.mark.parametrize(("content", "match"), [(LFS, "Git LFS pointer"), (HTML, "web page")])
@pytest.mark.parametrize("name", [FILE, "adapter_config.json"])
def test_what_was_not_downloaded(content, match, name, tmp_path):
    folder = write_adapter(tmp_path / "a")
    (folder / name).write_bytes(content)
    refused(folder, f"{name}: is a {match}")


def shard(folder, parts=2):
    tensors = load_file(folder / FILE)
    (folder / FILE).unlink()
    keys, places = sorted(tensors), {}
    for i in range(parts):
        name = f"adapter_model-{i + 1:05}-of-{parts:05}.safetensors"
        save_file({k: tensors[k] for k in keys[i::parts]}, folder / name)
        places |= dict.fromkeys(keys[i::parts], name)
    index = {"metadata": {"format": "pt"}, "weight_map": places}
    (folder / f"{FILE}.index.json").write_text(json.dumps(index))
    return places


@pytest.mark.parametrize("parts", [1, 3])
def test_shards(parts, tmp_path):
    whole = read_adapter(write_adapter(tmp_path / "a"), "t")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    places = shard(tmp_path / "b", parts)
    read = read_adapter(tmp_path / "b", "t")
    assert set(read.modules) == set(whole.modules)
    for name, module in read.modules.items():
        assert torch.equal(module.A, whole.modules[name].A)
        assert torch.equal(module.B, whole.modules[name].B)
    index = tmp_path / "b" / f"{FILE}.index.json"
    for places_now, match in [
        ({**places, "x.lora_A.weight": places[min(places)]}, "'x.lora_A.weight' is not in"),
        ({k: v for k, v in places.items() if k != min(places)}, "is not where"),
        (dict.fromkeys(places, "../a/adapter_model.safetensors"), "is no file beside it"),
        (dict.fromkeys(places, "adapter_model-9.safetensors"), "download all shards"),
        ([1], "no index of shards"),
        (dict.fromkeys(places, 3), "is no file beside it"),
    ]:
        index.write_text(json.dumps({"weight_map": places_now}))
        refused(tmp_path / "b", match)
    index.unlink()
    refused(tmp_path / "b", "missing, and the weights are in shards")


def test_folders_of_other_libraries(tmp_path):
    mlx = {"fine_tune_type": "lora", "num_layers": 2, "lora_parameters": {"rank": 4, "scale": 20}}
    folder = tmp_path / "mlx"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(mlx))
    refused(folder, "mlx-lm")
    for name, words in [
        ("adapters.safetensors", "mlx-lm"),
        ("pytorch_lora_weights.safetensors", "diffusers"),
        ("adapter_0.pt", "torchtune"),
    ]:
        for config in (None, {"peft_type": "LORA", "r": 4}):
            folder = tmp_path / f"{name}-{config is None}"
            folder.mkdir()
            (folder / name).write_bytes(b"x")
            if config:
                (folder / "adapter_config.json").write_text(json.dumps(config))
            refused(folder, words)
    folder = tmp_path / "kohya"
    folder.mkdir()
    (folder / "style.safetensors").write_bytes(b"x")
    refused(folder, "style.safetensors, perhaps of kohya")


def test_folders_that_are_not_the_adapters_own(tmp_path):
    write_adapter(tmp_path / "run" / "checkpoint-10")
    refused(tmp_path / "run", "but it holds 1: give .*checkpoint-10")
    refused(tmp_path / "run" / "checkpoint-10" / FILE, "but a file; give the folder")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "it has no adapter_config.json")
    done = hydrapack("merge", "someone/some-lora", "-o", tmp_path / "b")
    assert done.returncode == 2 and "hf download someone/some-lora" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "content", [b'{"task": "classification", "labels": [0, 1]}', b"[1]", b"x", b'{"stop": 3}']
)
def test_a_foreign_task_json(content, tmp_path):
    folder = write_adapter(tmp_path / "a")
    (folder / "task.json").write_bytes(content)
    refused(folder, "hydrapack's settings of the task .* rename or remove another tool's")


# --- several adapters


def renamed(folder, old, new):
    return edit_tensors(folder, rename(old, new))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("language_model.model.layers", "model.language_model.layers"),
        ("layers", "model.layers"),
        ("model.text_model.layers", "text_model.layers"),
    ],
)
def test_two_names_of_one_model(one, other, tmp_path):
    folders = [
        renamed(write_adapter(tmp_path / f"a{i}", i), "model.layers", prefix)
        for i, prefix in enumerate((one, other))
    ]
    # A module in common, lm_head, does not make the others the same.
    for folder in folders:
        edit_tensors(folder, put(f"{BASE}lm_head.lora_A.weight", (4, DIM)))
        edit_tensors(folder, put(f"{BASE}lm_head.lora_B.weight", (9, 4)))
    with pytest.raises(HydrapackError, match="two names of one module"):
        read_adapters([str(folder) for folder in folders])
    assert len(read_adapters([str(folders[0]), f"again={folders[0]}"])) == 2


def test_no_module_in_common(tmp_path):
    a = write_adapter(tmp_path / "a", names=module_names("q"))
    b = write_adapter(tmp_path / "b", names=module_names("q"))
    c = write_adapter(tmp_path / "c", names=module_names("v"))
    with pytest.raises(HydrapackError, match=r"/c: has no module in common"):
        read_adapters([str(a), str(b), str(c)])
    assert len(read_adapters([str(c)])) == 1


def test_revisions_are_compared_and_kept(tmp_path):
    folders = {
        r: edit_config(write_adapter(tmp_path / f"r-{r}"), revision=r)
        for r in (None, "main", "v2", "v3")
    }
    read_adapters([str(folders[None]), str(folders["main"])])
    for one, other in (("v2", "v3"), ("v2", None), ("main", "v2")):
        with pytest.raises(HydrapackError, match="different revisions: "):
            read_adapters([str(folders[one]), str(folders[other])])
    bundle = merged([folders["v2"]], tmp_path / "bundle")
    with pytest.raises(HydrapackError, match=r"different revisions: .* has 'v3'"):
        add(bundle, read_adapter(folders["v3"], "x"))
    unpack(bundle, tmp_path / "all")
    assert read_adapter(tmp_path / "all" / "r-v2", "x").revision == "v2"


@pytest.mark.parametrize("task_type", ["CAUSAL_LM", "FEATURE_EXTRACTION", None])
def test_task_type_is_kept_also_by_add(task_type, tmp_path):
    first = write_adapter(tmp_path / "first")
    second = edit_config(write_adapter(tmp_path / "second", 2), task_type=task_type)
    bundle = merged([first], tmp_path / "bundle")
    add(bundle, read_adapter(second, "second")).bundle.save(tmp_path / "b2")
    unpack(tmp_path / "b2", tmp_path / "all")
    for name, kind in (("first", "CAUSAL_LM"), ("second", task_type)):
        config = json.loads((tmp_path / "all" / name / "adapter_config.json").read_text())
        assert config["task_type"] == kind


# --- rank by module


def mixed(folder, seed):
    """Rank 2 everywhere, but 8 in the last layer."""
    write_adapter(folder, seed, rank=2)
    high = load_file(write_adapter(folder.with_suffix(".high"), seed + 50, rank=8) / FILE)
    last = f"layers.{LAYERS - 1}."
    edit_tensors(folder, lambda t: t.update({k: v for k, v in high.items() if last in k}))
    return edit_config(folder, rank_pattern={rf"layers\.{LAYERS - 1}\..*": 8})


@pytest.mark.parametrize("method", [method.name for method in METHODS])
def test_one_layer_of_higher_rank(method, tmp_path):
    folders = [mixed(tmp_path / f"a{seed}", seed) for seed in (1, 2)]
    bundle = merged(folders, tmp_path / "bundle", method=method)
    assert bundle.info.rank == 8 and bundle.info.s_percent <= 100
    for name, module in bundle.modules.items():
        own = 8 if f"layers.{LAYERS - 1}." in name else 2
        assert module.rank == own, name
        assert module.shared().abs().sum(1).min() > 0, "a stored row of zeros"
    unpack(bundle, tmp_path / "all")
    for folder in folders:
        read = read_adapter(tmp_path / "all" / folder.name, "x")
        assert {n: m.rank for n, m in read.modules.items()} == {
            n: m.rank for n, m in bundle.modules.items()
        }
        assert {m.scaling for m in read.modules.values()} == {1.0}
    manifest = pack(bundle, tmp_path / "package", 32).manifest
    assert manifest.rank == 8 and {m.rank for m in manifest.modules} == {2, 8}
    for task in manifest.tasks:
        assert task.packed_relative_error <= task.merge_relative_error + 1e-5


@pytest.mark.parametrize("rank", [3, 6, 64])
def test_an_asked_rank_is_cut_to_what_the_updates_span(rank, tmp_path):
    folders = [mixed(tmp_path / f"a{seed}", seed) for seed in (1, 2)]
    bundle = merged(folders, tmp_path / "bundle", rank=rank)
    assert bundle.info.rank == rank
    for name, module in bundle.modules.items():
        own = 16 if f"layers.{LAYERS - 1}." in name else 4
        assert module.rank == min(rank, own)
    if rank == 64:
        assert max(t.relative_error for t in bundle.info.tasks) < 1e-5
        # Copies of one adapter span no more than it alone.
        bundle = merged([folders[0], f"copy={folders[0]}"], tmp_path / "copies", rank=64)
        assert {m.rank for m in bundle.modules.values()} == {2, 8}
        assert max(t.relative_error for t in bundle.info.tasks) < 1e-5


def test_more_values_than_the_adapters_apart_are_told(tmp_path):
    one = write_adapter(tmp_path / "one", 1, rank=16)
    two = write_adapter(tmp_path / "two", 2, rank=2)
    done = hydrapack("merge", one, two, "-o", tmp_path / "b", "--json")
    share = json.loads(done.stdout)["s_percent"]
    assert share > 100 and f"warning: S = {share:.1f} %" in done.stderr
    done = hydrapack("merge", one, two, "-o", tmp_path / "b", "--rank", 2)
    assert done.returncode == 0 and "S =" not in done.stderr
    # Two of sixteen ranks: that is said too.
    assert "'one' is lost" in done.stderr and "'two' is lost" not in done.stderr


# --- packing


def some_layers(folder, seed, layers, names="qv"):
    full = write_adapter(folder, seed, names=module_names(names))
    return renamed(full, "layers.1.", f"layers.{layers[1]}.") and (
        renamed(full, "layers.0.", f"layers.{layers[0]}.")
    )


def test_modules_that_no_adapter_has_get_zeros(tmp_path):
    """The last layers alone, and one module missing from the middle."""
    folder = some_layers(tmp_path / "a", 1, (2, 4))
    edit_tensors(folder, lambda t: [t.pop(k) for k in list(t) if "layers.2.self_attn.v" in k])
    other = some_layers(tmp_path / "b", 2, (2, 4))
    bundle = merged([folder, other], tmp_path / "bundle", heads=2)
    for bits in (4, 32):
        manifest = pack(bundle, tmp_path / "package", bits).manifest
        assert len(manifest.modules) == 5 * 2 and manifest.layout.layers == 5
        for task in manifest.tasks:
            assert task.packed_relative_error < task.merge_relative_error + 0.2
    from hydrapack.verification.checks import verify

    checks = verify(tmp_path / "package", None, bundle, read_adapters([str(folder)]))
    assert checks and all(check.passed for check in checks), checks


def test_layers_are_counted_by_the_model(exported, tmp_path):
    from hydrapack.verification.checks import verify

    model = exported(4, ("q", "v"), quant="fp32", max_context=64)
    folder = write_adapter(tmp_path / "a", 1, names=module_names("qv")[:2])
    bundle = merged([folder], tmp_path / "bundle")
    assert len(pack(bundle, tmp_path / "short", 32).manifest.modules) == 2
    pack(bundle, tmp_path / "package", 32, model=model)
    checks = verify(tmp_path / "package", model=model)
    assert checks and all(check.passed for check in checks), checks
    deep = renamed(folder, "layers.0.", "layers.7.")
    with pytest.raises(HydrapackError, match="another adapter layout"):
        bundle = merged([deep], tmp_path / "deep")
        pack(bundle, tmp_path / "no", 32, model=model)


@pytest.mark.parametrize("name", ["lm_head", "model.layers.0.mlp.qkv_proj", "x.q_proj"])
def test_pack_refuses_what_no_program_adapts(name, tmp_path):
    folder = renamed(write_adapter(tmp_path / "a"), module_names()[0], name)
    bundle = merged([folder], tmp_path / "bundle")
    words = "output layer takes no adapter" if name == "lm_head" else f"cannot hold: {name}"
    with pytest.raises(HydrapackError, match=words):
        pack(bundle, tmp_path / "package")
    assert not (tmp_path / "package").exists()


# --- untrained adapters


def untrained(folder, seed=1):
    return edit_tensors(
        write_adapter(folder, seed), lambda t: [v.zero_() for k, v in t.items() if "lora_B" in k]
    )


def test_untrained_adapters(tmp_path):
    """No crash of t-SNE on equal points; merged they stay nothing."""
    one, two = untrained(tmp_path / "one"), untrained(tmp_path / "two", 2)
    good = write_adapter(tmp_path / "good", 3)
    done = hydrapack("analyze", one, good, "-o", tmp_path / "analysis")
    assert done.returncode == 2 and "is untrained" in done.stderr
    assert not (tmp_path / "analysis").exists()
    for method in [method.name for method in METHODS]:
        bundle = merged([one, two], tmp_path / method, method=method)
        assert all(not B.any() for task in bundle.info.tasks for B in bundle.head(task).values())


@pytest.mark.parametrize("value", [0.0, 1e-30, 3.0, 1e15])
def test_analyze_equal_points(value, tmp_path):
    """B the same everywhere, or zero in all modules but one."""
    folders = []
    for k in range(2):
        folder = write_adapter(tmp_path / f"a{k}", k)

        def level(tensors):
            for key in [k for k in tensors if "lora_B" in k][1:]:
                tensors[key].fill_(value)

        folders.append(edit_tensors(folder, level))
    done = hydrapack("analyze", *folders, "-o", tmp_path / "analysis", "--json")
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["modules"]) == len(module_names())


# Matplotlib warned of a legend of nothing.
@pytest.mark.filterwarnings("error::UserWarning")
def test_analyze_two_points(tmp_path):
    """Too few for a picture: a module an adapter."""
    names = module_names("q", layers=1)
    folders = [write_adapter(tmp_path / f"a{k}", k, names=names) for k in range(2)]
    done = hydrapack("analyze", *folders, "-o", tmp_path / "analysis")
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "analysis").glob("*.png"))
