"""Heads as ExecuTorch's .ptd and llama.cpp's GGUF, by those who read them."""

from __future__ import annotations

import copy
import json
from importlib import import_module

import gguf
import numpy as np
import peft
import pytest
import torch
import transformers
from conftest import edit_tensors, hydrapack, write_adapter
from peft_models import IDS, output, train
from safetensors.torch import load_file

import hydrapack as hp
from hydrapack.support.errors import HydrapackError

SIZES = {
    "vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
    "initializer_range": 0.2, "rms_norm_eps": 1e-6, "sliding_window": 32, "pad_token_id": 0,
    "tie_word_embeddings": False,
}  # fmt: skip
ALL = [f"{target}_proj" for target in ("q", "k", "v", "o", "gate", "up", "down")]
FUSED = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
MODELS = {
    "llama": "Llama",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "gemma2": "Gemma2",
    "gemma3": "Gemma3",
    "phi3": "Phi3",
}
RANK = 3


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Architecture -> a folder with a model, a bundle of two tasks on it, and that unpacked."""
    folders = {}

    def make(name):
        if name in folders:
            return folders[name]
        kind = MODELS[name]
        config = getattr(transformers, "Gemma3TextConfig" if name == "gemma3" else f"{kind}Config")
        values = {**SIZES, **({} if name == "phi3" else {"head_dim": 16})}
        if name.startswith("gemma"):
            values |= {"query_pre_attn_scalar": 16, "tie_word_embeddings": True}
        torch.manual_seed(0)
        model = getattr(transformers, f"{kind}ForCausalLM")(config(**copy.deepcopy(values)))
        for path, parameter in model.named_parameters():
            if "norm" in path or path.endswith("bias"):
                torch.nn.init.normal_(parameter, 0.3, 0.3)
        folders[name] = folder = tmp_path_factory.mktemp(name)
        model.save_pretrained(folder / "model")
        for seed, task in enumerate(("one", "two")):
            lora = peft.LoraConfig(
                r=RANK,
                lora_alpha=6,
                target_modules=FUSED if name == "phi3" else ALL,
                # A rank of its own, a layer that only the other task adapts.
                rank_pattern={"o_proj": 2},
                layers_to_transform=[0, 1] if seed else [1],
            )
            one = train(peft.get_peft_model(network(folder), lora), seed + 1, 0.2)
            one.save_pretrained(folder / task)
        hp.merge([folder / "one", folder / "two"], rank=RANK).save(folder / "bundle")
        hp.unpack(folder / "bundle", folder / "peft")
        return folder

    return make


def network(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder / "model", dtype=torch.float32, attn_implementation="eager"
    ).eval()


def adapted(folder, task):
    """Logits of PyTorch with the merged adapter."""
    return output(peft.PeftModel.from_pretrained(network(folder), folder / "peft" / task))[0]


def write_base(folder):
    """The model as llama.cpp's convert_hf_to_gguf.py would write it, without a vocabulary."""
    path, config = folder / "base.gguf", json.loads((folder / "model" / "config.json").read_text())
    if path.exists():
        return path
    name = config["model_type"].removesuffix("_text")
    writer = gguf.GGUFWriter(path, name)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    writer.add_head_count(heads["q_proj"])
    writer.add_head_count_kv(heads["k_proj"])
    writer.add_key_length(16)
    writer.add_value_length(16)
    writer.add_rope_dimension_count(16)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    rope = config["rope_parameters"]
    writer.add_rope_freq_base(rope.get("full_attention", rope)["rope_theta"])
    writer.add_sliding_window(config["sliding_window"] or 0)
    if name == "gemma2":
        writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[name.upper()], config["num_hidden_layers"])
    for key, value in load_file(folder / "model" / "model.safetensors").items():
        *_, target, _ = key.split(".")
        if name == "llama" and target in heads:
            value = value.view(heads[target], 2, -1, value.shape[1]).transpose(1, 2).flatten(0, 2)
        if name.startswith("gemma") and "norm" in target:
            value = value + 1
        stored = names.get_name(key, try_suffixes=(".weight", ".bias"))
        writer.add_tensor(stored, value.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("name", MODELS)
def test_llama_cpp_gives_the_logits_of_pytorch(made, name):
    llama_cpp = pytest.importorskip("llama_cpp", reason="needs llama-cpp-python")
    folder = made(name)
    base = write_base(folder)
    hp.unpack(folder / "bundle", folder / "gguf", format="gguf", model=folder / "model")

    def logits(**lora):
        options = {"n_ctx": 64, "n_threads": 1, "type_k": 0, "type_v": 0, "logits_all": True}
        model = llama_cpp.Llama(str(base), verbose=False, **options, **lora)
        model.eval(IDS[0].tolist())
        return torch.from_numpy(model.scores[: IDS.shape[1]].copy())

    bare = output(network(folder))[0]
    for task in ("one", "two"):
        expected = adapted(folder, task)
        effect = (expected - bare).abs().max()
        given = logits(lora_path=str(folder / "gguf" / f"{task}.gguf"))
        # llama.cpp has Gemma's activation in half precision.
        assert (given - expected).abs().max() < 0.003 * effect
        assert torch.equal(given.argmax(-1), expected.argmax(-1))


@pytest.mark.parametrize("name", MODELS)
def test_a_gguf_file_holds_the_update(made, name, tmp_path):
    """By gguf's reader: the keys and names of llama.cpp, and B and A to the bit."""
    folder = made(name)
    bundle = hp.Bundle.load(folder / "bundle")
    made_files = hp.unpack(bundle, tmp_path / "x", format="gguf", model=write_base(folder))
    hp.unpack(bundle, tmp_path / "y", format="gguf", model=folder / "model" / "config.json")
    assert made_files == {task: tmp_path / "x" / f"{task}.gguf" for task in bundle.tasks}
    for task in bundle.info.tasks:
        path = made_files[task.name]
        assert path.read_bytes() == (tmp_path / "y" / path.name).read_bytes()
        reader = gguf.GGUFReader(path)
        held = {key: field.contents() for key, field in reader.fields.items()}
        assert held["general.type"] == "adapter" and held["adapter.type"] == "lora"
        assert held["adapter.lora.alpha"] == RANK and held["general.architecture"] == name
        found = {t.name: torch.from_numpy(np.array(t.data)) for t in reader.tensors}
        names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[name.upper()], 2)
        heads = {n: B for n, B in bundle.head(task).items() if B.any()}
        assert (
            len(found) == 2 * len(heads) == len(bundle.modules) * (2 if task.name == "two" else 1)
        )
        for module, head in heads.items():
            stored, A = f"{names.get_name(module)}.weight", bundle.modules[module].A
            B = found[f"{stored}.lora_b"]
            halves = {"q_proj": 4, "k_proj": 2}.get(module.rsplit(".", 1)[-1])
            if name == "llama" and halves:
                B = B.view(halves, -1, 2, RANK).transpose(1, 2).reshape(B.shape)
            assert found[f"{stored}.lora_a"].shape == (RANK, A.shape[1])
            assert torch.equal(B[:, : len(A)] @ found[f"{stored}.lora_a"][: len(A)], head @ A)
            assert not B[:, len(A) :].any()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_gguf_in_half_precision(made, dtype, tmp_path):
    bundle = hp.Bundle.load(made("qwen2") / "bundle")
    path = hp.unpack(bundle, tmp_path / "x", "two", dtype, "gguf", made("qwen2") / "model")["two"]
    assert [file.name for file in path.parent.iterdir()] == ["two.gguf"]
    (tensor,) = (t for t in gguf.GGUFReader(path).tensors if t.name == "blk.1.attn_v.weight.lora_a")
    A = bundle.modules["model.layers.1.self_attn.v_proj"].A
    given = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type))
    assert torch.equal(given, A.to(getattr(torch, dtype)).float())


@torch.no_grad()
def test_executorch_gives_the_logits_of_pytorch(made, tmp_path):
    """Its own Llama with LoRA as inputs names the keys; its runtime reads the file and runs."""
    import_module("executorch.examples.models.llama.static_attention")  # registers it
    from executorch.examples.models.llama.llama_transformer import construct_transformer
    from executorch.examples.models.llama.lora import LoRALinear
    from executorch.examples.models.llama.model_args import ModelArgs
    from executorch.exir import ExecutorchBackendConfig, to_edge
    from executorch.runtime import Runtime

    folder = made("llama")
    files = hp.unpack(folder / "bundle", tmp_path / "ptd", format="ptd")
    model = construct_transformer(
        ModelArgs(
            dim=64, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=64, hidden_dim=96,
            max_seq_len=8, max_context_len=8, norm_eps=1e-6, rope_freq_base=10000.0,
            use_hf_rope=True, attention_type="static_mha", generate_full_logits=True,
            r=RANK, lora_alpha=RANK, target_modules=ALL,
        )
    )  # fmt: skip
    linears = {key: m for key, m in model.named_modules() if isinstance(m, LoRALinear)}
    assert json.loads((tmp_path / "ptd" / "model.lora_keys.json").read_text()) == [*linears]
    weights = {
        to_executorch(k): t for k, t in load_file(folder / "model" / "model.safetensors").items()
    }
    left = model.load_state_dict(weights, strict=False)
    assert not left.unexpected_keys and all(".lora_" in key for key in left.missing_keys)
    for key, linear in linears.items():
        linear._lora_key = key
        for part in ("lora_a", "lora_b"):
            shape = getattr(linear, part).weight.shape
            delattr(linear, part)
            linear.register_buffer(part, torch.randn(shape))

    class WithInputs(type(model)):
        def forward(self, tokens, mask):
            blob = {key: (linear.lora_a, linear.lora_b) for key, linear in linears.items()}
            return super().forward(tokens, {"masks": {0: mask}, "__lora_io_blob__": blob})[0]

    model.__class__ = WithInputs
    inputs = IDS, torch.full((1, 8, 8), -torch.inf).triu(1)
    exported = torch.export.export(model.eval(), inputs, strict=False)

    def apart(node):
        return "lora" if node.name.endswith(("lora_a", "lora_b")) else None

    config = ExecutorchBackendConfig(external_constants=apart)
    program = to_edge(exported).to_executorch(config)
    (tmp_path / "llama.pte").write_bytes(program.buffer)
    for task, file in files.items():
        method = (
            Runtime.get()
            .load_program(tmp_path / "llama.pte", data_path=file)
            .load_method("forward")
        )
        torch.testing.assert_close(
            method.execute(inputs)[0][0], adapted(folder, task), atol=1e-4, rtol=1e-4
        )


def to_executorch(key):
    names = {
        "model.embed_tokens": "tok_embeddings", "lm_head": "output", "model.": "",
        "input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attention.wqs.0.linear", "self_attn.k_proj": "attention.wks.0.linear",
        "self_attn.v_proj": "attention.wvs.0.linear", "self_attn.o_proj": "attention.wo.linear",
        "mlp.gate_proj": "feed_forward.w1.linear", "mlp.down_proj": "feed_forward.w2.linear",
        "mlp.up_proj": "feed_forward.w3.linear",
    }  # fmt: skip
    for theirs, own in names.items():
        key = key.replace(theirs, own)
    return key


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_ptd_file_holds_every_module_in_order(made, dtype, tmp_path):
    """A runner may bind by order: the same keys and shapes in each file, zeros where nothing is."""
    from executorch.exir._serialize._cord import Cord
    from executorch.exir.tensor import scalar_type_enum
    from executorch.extension.flat_tensor.serialize.serialize import FlatTensorSerializer

    bundle = hp.Bundle.load(made("llama") / "bundle")
    files = hp.unpack(bundle, tmp_path / "x", dtype=dtype, format="ptd")
    hp.unpack(bundle, tmp_path / "y", "one", dtype, "ptd")
    keys = json.loads((tmp_path / "x" / "model.lora_keys.json").read_text())
    assert len(keys) == len(bundle.modules) == 14
    assert [p.read_bytes() for p in sorted((tmp_path / "y").iterdir())] == [
        p.read_bytes() for p in sorted((tmp_path / "x").iterdir()) if p.stem != "two"
    ]
    kind = getattr(torch, dtype)
    for task in bundle.info.tasks:
        held = FlatTensorSerializer().deserialize(Cord(files[task.name].read_bytes()))
        assert [*held.named_data] == [f"{key}.lora_{part}" for key in keys for part in "ab"]
        found = {}
        for key, entry in held.named_data.items():
            assert entry.tensor_layout.scalar_type == scalar_type_enum(kind)
            data = torch.frombuffer(bytearray(held.buffers[entry.buffer_index]), dtype=kind)
            found[key] = data.view(entry.tensor_layout.sizes)
        o = bundle.modules["model.layers.1.self_attn.o_proj"].A
        assert torch.equal(found["layers.1.attention.wo.lora_a"][: len(o)], o.to(kind))
        assert found["layers.1.attention.wo.lora_a"].shape == (RANK, 64)
        assert found["layers.0.feed_forward.w2.lora_b"].shape == (64, RANK)
        assert bool(found["layers.0.feed_forward.w2.lora_b"].any()) == (task.name == "two")


def test_what_a_format_cannot_hold(made, tmp_path):
    llama, phi3 = (made(name) / "bundle" for name in ("llama", "phi3"))
    model, config = made("llama") / "model", tmp_path / "config.json"

    q, up = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"

    def bundle(name, renamed=q, **options):
        def rename(tensors):
            for key in [*tensors]:
                tensors[key.replace(q, renamed)] = tensors.pop(key)

        folder = write_adapter(tmp_path / name, names=[q, up], **options)
        return hp.merge([edit_tensors(folder, rename)])

    raw = json.loads((model / "config.json").read_text())
    config.write_text(json.dumps({**raw, "model_type": "mpt"}))
    (tmp_path / "tied").mkdir()
    (tmp_path / "tied" / "config.json").write_text(json.dumps({**raw, "tie_word_embeddings": True}))
    (tmp_path / "wide").mkdir()
    (tmp_path / "wide" / "config.json").write_text(json.dumps({**raw, "hidden_size": 128}))
    (tmp_path / "broken.gguf").write_bytes(b"GGUF")
    some, large = bundle("some"), bundle("large", lora_alpha=1e9)
    head = bundle("head", "lm_head", target_modules=["lm_head", "up_proj"])
    other = bundle("other", "model.vision.q_proj")
    for given, options, words in (
        (llama, {"format": "onnx"}, "`format` onnx: choose one of peft, ptd, gguf"),
        (llama, {"format": "gguf"}, "`model`: gguf needs the base: its folder"),
        (llama, {"model": tmp_path / "none"}, "none: no such file"),
        (
            llama,
            {"model": tmp_path / "broken.gguf"},
            "broken.gguf: no model's description can be read",
        ),
        (llama, {"model": config}, "config.json: model_type 'mpt' is not supported"),
        (llama, {"model": tmp_path / "wide"}, "down_proj: 64 x 96 is another size than `model`"),
        (llama, {"model": made("phi3") / "model"}, "no such matrix; take peft"),
        (phi3, {"model": model}, "gate_up_proj: a GGUF file of `model` has no such matrix"),
        (head, {"model": tmp_path / "tied"}, "lm_head: a GGUF file of `model` has no such"),
        (other, {"model": model}, "model.vision.q_proj: a GGUF file of `model` has no such"),
        (large, {"model": model, "dtype": "float16"}, "`dtype` float16: task 'large' has values"),
        (phi3, {"format": "ptd"}, "`format` ptd: has no fused qkv_proj; take peft"),
        (some, {"format": "ptd"}, "no layer may lack model.layers.0.mlp.up_proj; take peft"),
        (head, {"format": "ptd"}, "lm_head: the base program's output layer takes no adapter"),
    ):
        with pytest.raises(HydrapackError, match=words):
            hp.unpack(given, tmp_path / "out", **{"format": "gguf", **options})
    assert not (tmp_path / "out").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_command(made, tmp_path):
    folder = made("qwen2")
    arguments = ["unpack", folder / "bundle", "--all", "-o", tmp_path / "x", "--format", "gguf"]
    done = hydrapack(*arguments, "--model", folder / "model", "--dtype", "float16", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {t: str(tmp_path / "x" / f"{t}.gguf") for t in ("one", "two")}
    done = hydrapack(*arguments)
    assert done.returncode == 2 and "error: --model: gguf needs the base: " in done.stderr
