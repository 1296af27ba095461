import json
import math

import pytest
import torch
from conftest import edit_config, edit_tensors, module_names, write_adapter

from hydrapack.adapters.collect import read_adapters
from hydrapack.adapters.read import read_adapter
from hydrapack.support.errors import HydrapackError


def refused(folder, match, task="t"):
    with pytest.raises(HydrapackError, match=match) as caught:
        read_adapter(folder, task)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_reads_what_peft_writes(tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    lora = LoraConfig(
        r=4,
        lora_alpha=6,
        use_rslora=True,
        target_modules=["q_proj", "v_proj"],
        rank_pattern={"layers.1.self_attn.q_proj": 2},
        alpha_pattern={"v_proj": 10},
        init_lora_weights=False,
    )
    model = get_peft_model(LlamaForCausalLM(config), lora)
    model.save_pretrained(tmp_path / "a")
    adapter = read_adapter(tmp_path / "a", "t")
    assert len(adapter.modules) == 4
    for name, module in adapter.modules.items():
        layer = model.get_submodule(f"base_model.model.{name}")
        expected = layer.get_delta_weight("default")
        A, B = module.factors()
        torch.testing.assert_close((B @ A).float(), expected)
    odd = adapter.modules["model.layers.1.self_attn.q_proj"]
    assert odd.rank == 2 and odd.scaling == pytest.approx(6 / math.sqrt(2))


def test_older_keys_and_half_precision(tmp_path):
    folder = write_adapter(tmp_path / "a", dtype=torch.bfloat16)

    def rename(tensors):
        for key in list(tensors):
            tensors[key.replace(".weight", ".default.weight")] = tensors.pop(key)

    edit_tensors(folder, rename)
    adapter = read_adapter(folder, "t")
    assert sorted(adapter.modules) == sorted(module_names())
    assert adapter.modules[module_names()[0]].A.dtype == torch.bfloat16
    assert adapter.bytes == 2 * adapter.parameters


def test_task_settings(tmp_path):
    folder = write_adapter(tmp_path / "a")
    (folder / "task.json").write_text(json.dumps({"prompt_template": "Q: {input}", "stop": ["!"]}))
    assert read_adapter(folder, "t").settings.stop == ["!"]
    (folder / "task.json").write_text(json.dumps({"prompt_template": "no hole"}))
    refused(folder, r"prompt_template.*\{input\} exactly once")
    (folder / "task.json").write_text(json.dumps({"prompt": "x"}))
    refused(folder, "prompt: Extra inputs")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"peft_type": "IA3"}, "peft_type is IA3"),
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "biases"),
        ({"lora_bias": True}, "biases"),
        ({"fan_in_fan_out": True}, "Conv1D"),
        ({"lora_alpha": "x"}, "lora_alpha"),
    ],
)
def test_refuses_other_adapters(tmp_path, changes, match):
    refused(edit_config(write_adapter(tmp_path / "a"), **changes), match)


def test_refuses_broken_folders(tmp_path):
    refused(tmp_path / "nowhere", "not an adapter folder")
    folder = write_adapter(tmp_path / "a")
    weights = folder / "adapter_model.safetensors"
    whole = weights.read_bytes()
    for cut in (0, 4, 100, len(whole) // 2, len(whole) - 1):
        weights.write_bytes(whole[:cut])
        refused(folder, "corrupt or truncated")
    weights.write_bytes(b"\xff" * 8 + whole[8:])
    refused(folder, "corrupt or truncated")
    weights.rename(folder / "adapter_model.bin")
    refused(folder, "pickled weights are not read")
    (folder / "adapter_model.bin").unlink()
    refused(folder, "missing")
    (folder / "adapter_config.json").write_text("{")
    refused(folder, "not readable JSON")


KEY = f"base_model.model.{module_names()[0]}.lora_"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t: t[KEY + "A.weight"].fill_(float("nan")), "NaN or infinity"),
        (lambda t: t[KEY + "B.weight"].fill_(float("inf")), "NaN or infinity"),
        (lambda t: t.pop(KEY + "B.weight"), "has no lora_B"),
        (lambda t: t.pop(KEY + "A.weight"), "has no lora_A"),
        (lambda t: t.update({KEY + "A.weight": torch.zeros(3, 64)}), "do not fit"),
        (lambda t: t.update({KEY + "A.weight": torch.zeros(64)}), "floating-point matrix"),
        (lambda t: t.update({"norm.weight": torch.zeros(2)}), "no LoRA A or B"),
        (lambda t: t.update({"x.lora_embedding_A": torch.zeros(2, 2)}), "adapts an embedding"),
        (lambda t: t.clear(), "holds no LoRA weights"),
    ],
)
def test_refuses_bad_tensors(tmp_path, change, match):
    refused(edit_tensors(write_adapter(tmp_path / "a"), change), match)


def test_names_and_bases(tmp_path):
    one, two = write_adapter(tmp_path / "one"), write_adapter(tmp_path / "two", base="other/base")
    with pytest.raises(HydrapackError, match=r"different base models.*other/base"):
        read_adapters([str(one), str(two)])
    assert len(read_adapters([str(one), str(two)], allow_base_mismatch=True)) == 2
    assert [a.task for a in read_adapters([f"x={one}", f"y={one}"])] == ["x", "y"]
    with pytest.raises(HydrapackError, match="is taken"):
        read_adapters([str(one), str(one)])
    with pytest.raises(HydrapackError, match="no task name"):
        read_adapters([f"a b={one}"])
