"""What the installed PEFT writes, merged at full rank, unpacked and loaded again; or refused."""

from __future__ import annotations

import json
import math

import peft
import pytest
import torch
from conftest import edit_config
from peft_models import build, inputs, output, train
from safetensors.torch import load_file

from hydrapack.adapters.collect import read_adapters
from hydrapack.bundle.unpack import unpack
from hydrapack.merging.uniform import merge_adapters
from hydrapack.support.errors import HydrapackError

LLAMA = "LlamaForCausalLM"
QV = ["q_proj", "v_proj"]


def saved(folder, base, seed=1, **config):
    """A PEFT adapter of ``base`` in ``folder``; what the model with it gives."""
    config = {"r": 4, "lora_alpha": 8, "target_modules": QV, **config}
    torch.manual_seed(seed)
    model = train(peft.get_peft_model(build(base), peft.LoraConfig(**config)), seed)
    model.save_pretrained(folder)
    return output(model)


def unpacked(folders, target, rank=64):
    adapters = read_adapters([str(folder) for folder in folders])
    merge_adapters(adapters, rank=rank).save(target / "bundle")
    unpack(target / "bundle", target / "unpacked")
    return target / "unpacked"


def loaded(base, folder):
    """The model with the adapter in ``folder``, which must name its modules and no others."""
    model = peft.PeftModel.from_pretrained(build(base), str(folder))
    held = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    assert set(held) == set(load_file(folder / "adapter_model.safetensors"))
    return model


def same(base, folder, expected):
    given = output(loaded(base, folder))
    bare = output(build(base))
    assert (expected - bare).abs().max() > 1e-2, "the adapter does nothing"
    torch.testing.assert_close(given, expected, atol=1e-4, rtol=1e-4)


MATRIX = {
    "init-true": (LLAMA, {}),
    "init-false": (LLAMA, {"init_lora_weights": False}),
    "init-gaussian": (LLAMA, {"init_lora_weights": "gaussian"}),
    "init-orthogonal": (LLAMA, {"init_lora_weights": "orthogonal"}),
    "init-eva": (LLAMA, {"init_lora_weights": "eva"}),
    "init-mica": (LLAMA, {"init_lora_weights": "mica"}),
    "rslora": (LLAMA, {"use_rslora": True}),
    "velora": (LLAMA, {"velora_config": peft.tuners.lora.config.VeloraConfig(num_groups=4)}),
    "monteclora": (LLAMA, {"monteclora_config": peft.tuners.lora.config.MontecloraConfig()}),
    "rank-pattern": (LLAMA, {"rank_pattern": {r".*\.layers\.1\..*": 2}, "use_rslora": True}),
    "alpha-pattern": (
        LLAMA,
        {"alpha_pattern": {"^model.layers.0.self_attn.q_proj": 3, "v_proj": 20}},
    ),
    "both-patterns": (
        LLAMA,
        {"rank_pattern": {"q_proj": 7}, "alpha_pattern": {"layers.1.self_attn.q_proj": 3}},
    ),
    "layers-to-transform": (LLAMA, {"layers_to_transform": [1], "layers_pattern": "layers"}),
    "all-linear": (LLAMA, {"target_modules": "all-linear"}),
    "regex": (LLAMA, {"target_modules": r".*\.layers\.[01]\.mlp\.(up|down)_proj"}),
    "exclude": (LLAMA, {"exclude_modules": ["model.layers.0.self_attn.q_proj"]}),
    "lm-head": (LLAMA, {"target_modules": ["q_proj", "lm_head"]}),
    "null-task": (LLAMA, {"task_type": None}),
    "bare-llama": ("LlamaModel", {"task_type": "FEATURE_EXTRACTION"}),
    "bare-llama-null": ("LlamaModel", {"task_type": None}),
    "qwen2": ("Qwen2ForCausalLM", {"target_modules": "all-linear"}),
    "gemma": ("GemmaForCausalLM", {"target_modules": [*QV, "down_proj"]}),
    "phi3-fused": ("Phi3ForCausalLM", {"target_modules": ["qkv_proj", "o_proj", "gate_up_proj"]}),
    "bert": ("BertModel", {"target_modules": ["query", "value"], "task_type": None}),
    "bert-masked": ("BertForMaskedLM", {"target_modules": ["query", "dense"], "task_type": None}),
    "t5": (
        "T5ForConditionalGeneration",
        {"target_modules": ["q", "v", "wo"], "task_type": "SEQ_2_SEQ_LM"},
    ),
    "whisper": (
        "WhisperForConditionalGeneration",
        {"target_modules": r".*decoder.*\.(q_proj|v_proj)", "task_type": None},
    ),
}


@pytest.mark.parametrize("name", MATRIX)
def test_merged_unpacked_and_loaded_it_is_the_adapter(name, tmp_path):
    base, config = MATRIX[name]
    config = {"task_type": "CAUSAL_LM", **config}
    expected = {s: saved(tmp_path / f"a{s}", base, s, **config) for s in (1, 2)}
    target = unpacked([tmp_path / "a1", tmp_path / "a2"], tmp_path)
    for s, reference in expected.items():
        same(base, target / f"a{s}", reference)
        written = json.loads((target / f"a{s}" / "adapter_config.json").read_text())
        assert written["task_type"] == config["task_type"]
    kept = load_file(target / "a1" / "adapter_model.safetensors")
    modules = set(load_file(tmp_path / "a1" / "adapter_model.safetensors"))
    assert {k for k in modules if k.endswith(("lora_A.weight", "lora_B.weight"))} == set(kept)


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora"])
@pytest.mark.parametrize("use_rslora", [False, True])
def test_an_init_that_changes_the_base(init, use_rslora, tmp_path):
    """Refused as it is, right once PEFT has converted it."""
    config = {"r": 4, "lora_alpha": 8, "use_rslora": use_rslora, "task_type": "CAUSAL_LM"}
    config |= {"target_modules": QV, "init_lora_weights": init}
    model = peft.get_peft_model(build(LLAMA), peft.LoraConfig(**config))
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(tmp_path / "start")
    model.peft_config["default"].init_lora_weights = init
    train(model, 1)
    model.save_pretrained(tmp_path / "raw")
    with pytest.raises(HydrapackError, match=rf"init_lora_weights = \"{init}\" changes the base"):
        read_adapters([str(tmp_path / "raw")])
    expected = output(model)
    model.save_pretrained(
        tmp_path / "converted", path_initial_model_for_weight_conversion=str(tmp_path / "start")
    )
    same(LLAMA, unpacked([tmp_path / "converted"], tmp_path) / "converted", expected)


@pytest.mark.parametrize("init", ["corda", "loftq", "lora_ga", "OLoRA", "pissa_niter_16", "magic"])
def test_other_inits_are_refused_by_name(init, tmp_path):
    """Those that PEFT writes only with data or another package, and unknown ones."""
    saved(tmp_path / "a", LLAMA)
    edit_config(tmp_path / "a", init_lora_weights=init)
    with pytest.raises(HydrapackError, match=f'init_lora_weights = "{init}"'):
        read_adapters([str(tmp_path / "a")])


def _bdlora():
    return peft.tuners.lora.config.BdLoraConfig(
        target_modules_bd_a=["o_proj"], nblocks=2, match_strict=False
    )


REFUSED = {
    "dora": (LLAMA, lambda: {"use_dora": True}, "use_dora"),
    "alora": (LLAMA, lambda: {"alora_invocation_tokens": [60, 61]}, "alora_invocation_tokens"),
    "bdlora": (
        LLAMA,
        lambda: {"use_bdlora": _bdlora(), "target_modules": ["q_proj", "o_proj"]},
        "use_bdlora",
    ),
    "kasa": (LLAMA, lambda: {"kasa_config": peft.tuners.lora.config.KasaConfig()}, "kasa_config"),
    "bias": (LLAMA, lambda: {"bias": "all"}, "bias = "),
    "lora-bias": ("Qwen2ForCausalLM", lambda: {"lora_bias": True}, "lora_bias"),
    "tokens": (LLAMA, lambda: {"trainable_token_indices": [3]}, "trainable_token_indices"),
    "to-save": (LLAMA, lambda: {"modules_to_save": ["lm_head"]}, "modules_to_save"),
    "replicated": (LLAMA, lambda: {"layer_replication": [[0, 2], [1, 2]]}, "layer_replication"),
    "embedding": (LLAMA, lambda: {"target_modules": ["q_proj", "embed_tokens"]}, "embedding"),
    "parameters": (
        LLAMA,
        lambda: {"target_parameters": ["lm_head.weight"]},
        "target_parameters",
    ),
    "gpt2": ("GPT2LMHeadModel", lambda: {"target_modules": ["c_attn"]}, "fan_in_fan_out"),
    "classifier": (
        "LlamaForSequenceClassification",
        lambda: {"task_type": "SEQ_CLS"},
        "modules_to_save",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_variants_are_refused_by_name(name, tmp_path):
    base, config, words = REFUSED[name]
    saved(tmp_path / "a", base, **{"task_type": "CAUSAL_LM", **config()})
    with pytest.raises(HydrapackError, match=words) as caught:
        read_adapters([str(tmp_path / "a")])
    assert "\n" not in str(caught.value)


KINDS = {
    "ADALORA": lambda: peft.AdaLoraConfig(target_modules=QV, total_step=10),
    "BOFT": lambda: peft.BOFTConfig(target_modules=QV, boft_block_size=4),
    "FOURIERFT": lambda: peft.FourierFTConfig(target_modules=QV, n_frequency=10),
    "HRA": lambda: peft.HRAConfig(target_modules=QV),
    "IA3": lambda: peft.IA3Config(target_modules=QV, feedforward_modules=[]),
    "LN_TUNING": lambda: peft.LNTuningConfig(target_modules=["norm"]),
    "LOHA": lambda: peft.LoHaConfig(target_modules=QV),
    "LOKR": lambda: peft.LoKrConfig(target_modules=QV),
    "OFT": lambda: peft.OFTConfig(target_modules=QV, oft_block_size=4),
    "PREFIX_TUNING": lambda: peft.PrefixTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"),
    "PROMPT_TUNING": lambda: peft.PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"),
    "TRAINABLE_TOKENS": lambda: peft.TrainableTokensConfig(token_indices=[3]),
    "VBLORA": lambda: peft.VBLoRAConfig(target_modules=QV, vector_length=4, num_vectors=8),
}


@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds_are_refused_by_name(kind, tmp_path):
    peft.get_peft_model(build(LLAMA), KINDS[kind]()).save_pretrained(tmp_path / "a")
    with pytest.raises(HydrapackError, match=f"peft_type is {kind}; only LORA and VERA"):
        read_adapters([str(tmp_path / "a")])


def test_xlora_is_refused_by_name(tmp_path):
    saved(tmp_path / "expert", LLAMA, task_type="CAUSAL_LM")
    model = build(LLAMA)
    model.config.use_cache = False
    config = peft.XLoraConfig(
        task_type="CAUSAL_LM", hidden_size=32, adapters={"one": str(tmp_path / "expert")}
    )
    peft.get_peft_model(model, config).save_pretrained(tmp_path / "x")
    with pytest.raises(HydrapackError, match="peft_type is XLORA"):
        read_adapters([str(tmp_path / "x")])


def test_vera(tmp_path):
    config = peft.VeraConfig(r=6, target_modules=QV, task_type="CAUSAL_LM")
    model = train(peft.get_peft_model(build(LLAMA), config), 1, 0.5)
    model.save_pretrained(tmp_path / "a")
    target = unpacked([tmp_path / "a"], tmp_path, rank=None)
    torch.testing.assert_close(
        output(peft.PeftModel.from_pretrained(build(LLAMA), str(target / "a"))),
        output(model), atol=1e-4, rtol=1e-4,
    )  # fmt: skip
    assert (output(model) - output(build(LLAMA))).abs().max() > 1e-3


def test_a_convolution_is_refused_by_name(tmp_path):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4, 4))
    config = peft.LoraConfig(r=2, target_modules=["0", "2"])
    peft.get_peft_model(model, config).save_pretrained(tmp_path / "a")
    with pytest.raises(HydrapackError, match="4 dimensions, as LoRA on a convolution"):
        read_adapters([str(tmp_path / "a")])


def test_weighted_concatenation(tmp_path):
    """add_weighted_adapter's ranks of its own in each module."""
    expected = {}
    for s in (1, 2):
        config = {"r": 4, "lora_alpha": 8, "target_modules": QV, "rank_pattern": {"v_proj": 3}}
        model = peft.get_peft_model(build(LLAMA), peft.LoraConfig(**config), adapter_name="x")
        model.add_adapter("y", peft.LoraConfig(**{**config, "r": 2}))
        train(model, s, 0.3)
        model.add_weighted_adapter(["x", "y"], [0.7, 0.5], "mix", combination_type="cat")
        model.set_adapter("mix")
        model.save_pretrained(tmp_path / f"all{s}", selected_adapters=["mix"])
        (tmp_path / f"all{s}" / "mix").rename(tmp_path / f"a{s}")
        expected[s] = output(model)
    target = unpacked([tmp_path / "a1", tmp_path / "a2"], tmp_path)
    for s, reference in expected.items():
        same(LLAMA, target / f"a{s}", reference)


def test_one_multimodal_model_in_part(tmp_path):
    """LoRA on the text layers alone; the vision tower's wrapped linears are of the same names."""
    from transformers import Gemma4Config, Gemma4ForConditionalGeneration

    def gemma():
        torch.manual_seed(0)
        text = {
            "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
            "global_head_dim": 16, "vocab_size_per_layer_input": 64,
            "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 0,
            "layer_types": ["sliding_attention", "full_attention"], "max_position_embeddings": 64,
        }  # fmt: skip
        vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
        vision |= {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}
        config = Gemma4Config(text_config=text, vision_config=vision, audio_config=None)
        return Gemma4ForConditionalGeneration(config).eval()

    targets = r".*language_model.*\.(q_proj|v_proj)"
    config = peft.LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM")
    model = train(peft.get_peft_model(gemma(), config), 1, 0.3)
    model.save_pretrained(tmp_path / "a")
    again = peft.PeftModel.from_pretrained(gemma(), str(unpacked([tmp_path / "a"], tmp_path) / "a"))
    torch.testing.assert_close(output(again), output(model), atol=1e-4, rtol=1e-4)
    assert (output(model) - output(gemma())).abs().max() > 1e-3


@pytest.mark.parametrize(
    "prefix", ["_orig_mod.", "module.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module."]
)
@pytest.mark.parametrize("place", ["start", "after-base", "layer", "leaf"])
def test_wrappers_names_are_taken_off(prefix, place, tmp_path):
    from safetensors.torch import save_file

    expected = saved(tmp_path / "a", LLAMA, task_type="CAUSAL_LM")
    path = tmp_path / "a" / "adapter_model.safetensors"
    at = {
        "start": "base_model.",
        "after-base": "model.layers",
        "layer": "self_attn",
        "leaf": "lora_",
    }
    before = at[place]
    wrapped = {k.replace(before, prefix + before, 1): v for k, v in load_file(path).items()}
    assert all(prefix in key for key in wrapped)
    save_file(wrapped, path)
    same(LLAMA, unpacked([tmp_path / "a"], tmp_path) / "a", expected)


def test_modules_of_one_task_alone(tmp_path):
    """An unpacked adapter adapts what its task adapted, not what the others did."""
    one = saved(tmp_path / "one", LLAMA, 1, target_modules=["q_proj"], task_type="CAUSAL_LM")
    saved(tmp_path / "two", LLAMA, 2, target_modules=["q_proj", "o_proj"], task_type="CAUSAL_LM")
    target = unpacked([tmp_path / "one", tmp_path / "two"], tmp_path)
    same(LLAMA, target / "one", one)
    assert not any("o_proj" in k for k in load_file(target / "one" / "adapter_model.safetensors"))


def test_scale_of_a_pattern(tmp_path):
    """The scaling that the installed PEFT gives every module, against the one that is read."""
    config = {"use_rslora": True, "rank_pattern": {"q_proj|o_proj": 6, r"layers\.1\.mlp\..*": 2}}
    config |= {"alpha_pattern": {r"^model\.layers\.0.*": 5, "v_proj": 7, "model.norm": 1}}
    saved(tmp_path / "a", LLAMA, target_modules=[*QV, "o_proj", "up_proj"], **config)
    model = peft.PeftModel.from_pretrained(build(LLAMA), str(tmp_path / "a"))
    (adapter,) = read_adapters([str(tmp_path / "a")])
    assert len(adapter.modules) == 8
    for name, module in adapter.modules.items():
        layer = model.get_submodule(f"base_model.model.{name}")
        assert math.isclose(module.scaling, layer.scaling["default"])
        assert module.rank == layer.r["default"]
    assert inputs(model)
