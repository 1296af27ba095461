"""Base programs of every architecture against transformers and PEFT: every feature, no adapter
and adapters, text longer than the sliding window."""

import copy
import json

import gguf
import pytest
import torch
import transformers
from peft_models import ATTENTION, SMALL, train
from safetensors.torch import load_file
from tokenizers import Tokenizer, models

from hydrapack.adapters.read import read_adapter
from hydrapack.base.config import FULL, SLIDING, parse_config, rope_tables
from hydrapack.base.decoder import Decoder
from hydrapack.base.export import export_base
from hydrapack.base.integers import quantize_decoder
from hydrapack.base.scheme import scheme_of
from hydrapack.base.source import Source
from hydrapack.base.weights import load_quantized, load_weights
from hydrapack.program.layout import (
    a_matrices,
    b_matrices,
    layout_of,
    module_name,
    pack_a,
    pack_b,
    parse_targets,
)
from hydrapack.program.load import forward_inputs, load_program
from hydrapack.support.errors import HydrapackError

LAYERS, RANK, CONTEXT, WINDOW, LENGTH, NEW = 2, 3, 64, 7, 20, 8
ALL, FUSED = "q,k,v,o,gate,up,down", "qkv,o,gate_up,down"
SIZES = {**SMALL, **ATTENTION, "hidden_size": 64, "head_dim": 16, "num_hidden_layers": LAYERS}
SIZES |= {"intermediate_size": 96, "max_position_embeddings": 128, "initializer_range": 0.2}
SLIDES = {"sliding_window": WINDOW, "layer_types": [SLIDING, FULL]}
GEMMA = {**SLIDES, "query_pre_attn_scalar": 24, "final_logit_softcapping": 5.0}
LONG = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.5, 2.0, 3.0],
    "long_factor": [1.0, 4.0, 6.0, 9.0],
    "partial_rotary_factor": 0.5,
}
MODELS = {
    "qwen2": ("Qwen2", {**SLIDES, "use_sliding_window": True}, ALL),
    "qwen3": (
        "Qwen3",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 5e5,
                "factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
        ALL,
    ),
    "gemma3": (
        "Gemma3",
        {
            **GEMMA,
            "num_key_value_heads": 1,  # as of 270M and 1B
            "rope_parameters": {
                FULL: {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                SLIDING: {"rope_type": "default", "rope_theta": 1e4},
            },
        },
        ALL,
    ),
    "gemma2": ("Gemma2", {**GEMMA, "attn_logit_softcapping": 2.0}, "q,v"),
    # Up to 64 positions the short factors are in force, up to 16 only fewer than the text has.
    "phi3": (
        "Phi3",
        {"sliding_window": WINDOW, "rope_parameters": LONG, "original_max_position_embeddings": 64},
        FUSED,
    ),
    "phi3-long": (
        "Phi3",
        {"rope_parameters": LONG, "original_max_position_embeddings": 16},
        "q,k,v,o",
    ),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Name of a model -> its folder, made once."""
    folders = {}

    def make(name, layers=LAYERS):
        if (name, layers) in folders:
            return folders[name, layers]
        kind, changes, _ = MODELS[name]
        config = "Gemma3TextConfig" if kind == "Gemma3" else f"{kind}Config"
        values = {**SIZES, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, **changes}
        values["num_hidden_layers"] = layers
        if kind == "Phi3":
            del values["head_dim"]
        torch.manual_seed(0)
        model = getattr(transformers, f"{kind}ForCausalLM")(
            getattr(transformers, config)(**copy.deepcopy(values))
        )
        for path, parameter in model.named_parameters():
            if "norm" in path or path.endswith("bias"):
                torch.nn.init.normal_(parameter, 0.3, 0.3)
        folders[name, layers] = folder = tmp_path_factory.mktemp(name) / "model"
        model.save_pretrained(folder)
        Tokenizer(models.BPE()).save(str(folder / "tokenizer.json"))
        return folder

    return make


def network(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def split(model):
    """A Phi whose q, k and v are linears of their own, as some split them to train."""

    class Parts(torch.nn.Module):
        def __init__(self, q_proj, k_proj, v_proj):
            super().__init__()
            self.q_proj, self.k_proj, self.v_proj = q_proj, k_proj, v_proj

        def forward(self, x):
            return torch.cat([self.q_proj(x), self.k_proj(x), self.v_proj(x)], -1)

    for layer in model.model.layers:
        weight = layer.self_attn.qkv_proj.weight.data
        parts = []
        for rows in weight.split([64, 32, 32]):
            parts.append(torch.nn.Linear(64, len(rows), bias=False))
            parts[-1].weight.data = rows
        layer.self_attn.qkv_proj = Parts(*parts)
    return model


def adapted(name, folder, out):
    """The model under a PEFT adapter, and the adapter's matrices as a program takes them."""
    import peft

    model, targets = network(folder), parse_targets(MODELS[name][2])
    if name == "phi3-long":
        model = split(model)
    wanted = [f"{target}_proj" for target in targets]
    lora = peft.LoraConfig(r=RANK, lora_alpha=6, target_modules=wanted)
    model = train(peft.get_peft_model(model, lora), 1, 0.2).eval()
    model.save_pretrained(out)
    modules = {
        path.replace(".qkv_proj.", "."): module
        for path, module in read_adapter(out, "task").modules.items()
    }
    assert set(modules) == {
        module_name(i, t) for i in range(model.config.num_hidden_layers) for t in targets
    }
    layout = layout_of({path: module.shape for path, module in modules.items()}, RANK)
    a = pack_a(layout, {path: module.A.float() for path, module in modules.items()})
    b = pack_b(layout, {path: m.B.float() * m.scaling for path, m in modules.items()})
    return model, layout, [*a_matrices(a, layout.a_shapes), *b_matrices(b, layout.b_shapes)]


def decoder_of(folder, layout, context=CONTEXT):
    source = Source(str(folder))
    decoder = Decoder(source.config, layout, context)
    load_weights(decoder, source)
    return decoder.requires_grad_(False)


def ids(count=LENGTH):
    return torch.randint(3, 64, (count,), generator=torch.Generator().manual_seed(3)).tolist()


def greedy(forward, on, matrices):
    """Logits after the text, in two calls, and what follows, token by token."""
    text, cut = ids(), LENGTH - 4
    forward(*forward_inputs(text[:cut], range(cut), [0], on, matrices))
    logits = forward(*forward_inputs(text[cut:], range(cut, LENGTH), [3], on, matrices))[0, 0]
    first, tokens = logits, [int(logits.argmax())]
    for at in range(LENGTH, LENGTH + NEW - 1):
        logits = forward(*forward_inputs(tokens[-1:], [at], [0], on, matrices))[0, 0]
        tokens.append(int(logits.argmax()))
    return first, tokens


@torch.no_grad()
def expected(model):
    """The same of transformers, without its cache."""
    text, tokens, logits = ids(), [], []
    for _ in range(NEW):
        logits.append(model(torch.tensor([text + tokens])).logits[0, -1])
        tokens.append(int(logits[-1].argmax()))
    return logits[0], tokens


@pytest.mark.parametrize("name", MODELS)
def test_same_as_transformers(made, tmp_path, name):
    folder = made(name)
    model, layout, matrices = adapted(name, folder, tmp_path / "task")
    decoder = decoder_of(folder, layout)
    logits = {}
    for on in (True, False):
        wanted, continued = expected(model if on else network(folder))
        logits[on], tokens = greedy(decoder, on, matrices)
        assert (logits[on] - wanted).abs().max() < 1e-3
        assert tokens == continued
    assert (logits[True] - logits[False]).abs().max() > 0.1


@pytest.mark.parametrize("quant", ["8da4w", "mixed", "fp32"])
@pytest.mark.parametrize("name", ["qwen2", "gemma3", "phi3"])
def test_rounded_as_it_is_read(made, name, quant):
    """Matrix by matrix: the values and formats of a decoder rounded as a whole."""
    source, scheme = Source(str(made(name))), scheme_of(quant)
    one = Decoder(source.config, None, CONTEXT).requires_grad_(False)
    formats = load_quantized(one, scheme, source)
    other = decoder_of(made(name), None)
    assert quantize_decoder(other, scheme) == formats == scheme
    inputs = forward_inputs(ids(), range(LENGTH), range(LENGTH), False, [])
    assert torch.equal(one(*inputs), other(*inputs))


# Gemma's layers are of two kinds; a second layer of the others' takes as long again to lower.
@pytest.mark.parametrize(
    ("name", "layers"), [("qwen3", 1), ("gemma3", 2), ("gemma2", 2), ("phi3", 1)]
)
def test_lowered_to_8da4w(made, tmp_path, name, layers):
    """On ExecuTorch, with the adapter and without: what the quantized decoder computes."""
    folder, path = made(name, layers), tmp_path / "m.pte"
    _, layout, matrices = adapted(name, folder, tmp_path / "task")
    export_base(folder, path, RANK, MODELS[name][2], "8da4w", CONTEXT)
    decoder = decoder_of(folder, layout)
    quantize_decoder(decoder, scheme_of("8da4w"))
    forward = load_program(path, "forward").method("forward")
    for on in (True, False):
        wanted, _ = greedy(decoder, on, matrices)
        logits, _ = greedy(lambda *inputs: forward.execute(inputs)[0], on, matrices)
        assert (logits - wanted).abs().max() < 0.05 * wanted.abs().max()


@pytest.mark.parametrize("name", ["qwen3", "gemma3"])
def test_gguf(made, tmp_path, name):
    """Names, order and norms of a GGUF file; what it says of the decoder."""
    folder, path = made(name), tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, name)
    writer.add_context_length(128)
    writer.add_embedding_length(64)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(1 if name == "gemma3" else 2)
    writer.add_key_length(16)
    writer.add_sliding_window(WINDOW)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)
    writer.add_vocab_size(64)
    map_ = gguf.get_tensor_name_map(gguf.MODEL_ARCH[name.upper()], LAYERS)
    tensors = load_file(folder / "model.safetensors")
    for key, value in tensors.items():
        if name == "gemma3" and value.dim() == 1:
            value = value + 1
        writer.add_tensor(map_.get_name(key, try_suffixes=(".weight",)), value.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    read = Source(str(path))
    assert all(key in read for key in tensors)
    for key, value in tensors.items():
        assert torch.allclose(read.read(key), value, atol=1e-6), key
    wanted = Source(str(folder)).config
    kept = ("architecture", "dim", "layers", "heads", "kv_heads", "head_dim", "intermediate")
    for field in (*kept, "window", "activation", "tied_embeddings", "vocab_size"):
        assert getattr(read.config, field) == getattr(wanted, field), field


ROPES = {
    "default": {},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 32},
    "llama3": {
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "longrope": {
        "short_factor": [1.0 + i / 8 for i in range(8)],
        "long_factor": [2.0 + i for i in range(8)],
        "original_max_position_embeddings": 32,
    },
}


@pytest.mark.parametrize("kind", ROPES)
@pytest.mark.parametrize("length", [20, 60])
def test_rotations_are_those_of_transformers(kind, length):
    """Old files and new ones, texts shorter and longer than what the model was trained on first."""
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    raw = {**SIZES, "model_type": "llama", "rms_norm_eps": 1e-5}
    new = {"rope_parameters": {"rope_type": kind, "rope_theta": 5e5, **ROPES[kind]}}
    old = {"rope_theta": 5e5, "rope_scaling": {"rope_type": kind, **ROPES[kind]}}
    if kind == "default":
        del old["rope_scaling"]
    rotary = LlamaRotaryEmbedding(transformers.LlamaConfig(**copy.deepcopy({**raw, **new})))
    wanted = rotary(torch.zeros(1), torch.arange(length)[None])
    for described in (new, old):
        config = parse_config({**raw, **described}, "config.json")
        for table, whole in zip(rope_tables(config, FULL, length), wanted, strict=True):
            torch.testing.assert_close(table, whole[0, :, :8], rtol=0, atol=1e-5)


def test_other_models_are_refused_by_name(made, tmp_path):
    raw = json.loads((made("gemma3") / "config.json").read_text())
    for change, words in (
        ({"model_type": "mixtral"}, "'mixtral' is not supported. hydrapack exports llama, qwen2"),
        ({"model_type": "gemma3"}, "'gemma3' is not supported"),
        ({"attention_bias": True}, "attention_bias = True is not supported"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ({"hidden_activation": "relu"}, "hidden_activation = 'relu' is not supported"),
        ({"layer_types": ["chunked_attention"] * LAYERS}, "layer_types"),
        (
            {"rope_parameters": {FULL: {"rope_type": "spiral"}}},
            "config.json: rope type .spiral",
        ),
    ):
        with pytest.raises(HydrapackError, match=words):
            parse_config({**raw, **change}, "config.json")


def test_fused_and_single_linears():
    """A program takes one form or the other, and sizes of both are known."""
    config = parse_config({**SIZES, "model_type": "llama"}, "config.json")
    assert config.linear_shape("qkv") == (128, 64) and config.linear_shape("gate_up") == (192, 64)
    layout = config.layout(parse_targets(FUSED), RANK)
    assert layout.a_shapes == [(64, RANK), (64, RANK), (64, RANK), (96, RANK)] * LAYERS
    assert layout.b_shapes == [(RANK, 128), (RANK, 64), (RANK, 192), (RANK, 64)] * LAYERS
    named = {"model.layers.0.self_attn.qkv_proj": (128, 64), "model.layers.1.mlp.up_proj": (96, 64)}
    assert layout_of(named, RANK).targets == ("qkv", "up")
    named["model.layers.0.self_attn.v_proj"] = (32, 64)
    for both in (lambda: layout_of(named, RANK), lambda: parse_targets("gate_up,up")):
        with pytest.raises(HydrapackError, match="are one linear of the model"):
            both()
