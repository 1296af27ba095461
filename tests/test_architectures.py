"""Base programs of every architecture against transformers and PEFT: every feature, no adapter
and adapters, text longer than the sliding window."""

import copy
import json
from dataclasses import replace

import pytest
import torch
import transformers
from peft_models import ATTENTION, SMALL, train
from tokenizers import Tokenizer, models

from hydrapack.adapters.read import read_adapter
from hydrapack.base.config import FULL, SLIDING, parse_config, rope_tables
from hydrapack.base.decoder import Decoder
from hydrapack.base.export import export_base
from hydrapack.base.integers import quantize_decoder
from hydrapack.base.scheme import scheme_of
from hydrapack.base.source import Source
from hydrapack.base.weights import load_weights
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

RANK, CONTEXT, WINDOW, LENGTH, NEW = 3, 64, 7, 20, 8
ALL, FUSED = "q,k,v,o,gate,up,down", "qkv,o,gate_up,down"
SIZES = {**SMALL, **ATTENTION, "hidden_size": 64, "head_dim": 16, "num_hidden_layers": 3}
SIZES |= {"intermediate_size": 96, "max_position_embeddings": 128, "initializer_range": 0.2}
SLIDES = {"sliding_window": WINDOW, "layer_types": [SLIDING, FULL, SLIDING]}
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

    def make(name):
        if name in folders:
            return folders[name]
        kind, changes, _ = MODELS[name]
        config = "Gemma3TextConfig" if kind == "Gemma3" else f"{kind}Config"
        values = {**SIZES, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, **changes}
        if kind == "Phi3":
            del values["head_dim"]
        torch.manual_seed(0)
        model = getattr(transformers, f"{kind}ForCausalLM")(
            getattr(transformers, config)(**copy.deepcopy(values))
        )
        for path, parameter in model.named_parameters():
            if "norm" in path or path.endswith("bias"):
                torch.nn.init.normal_(parameter, 0.3, 0.3)
        folders[name] = folder = tmp_path_factory.mktemp(name) / "model"
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
    assert set(modules) == {module_name(i, t) for i in range(3) for t in targets}
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
    text, tokens = ids(), []
    for _ in range(NEW):
        logits = model(torch.tensor([text + tokens])).logits[0, -1]
        first = logits if not tokens else first
        tokens.append(int(logits.argmax()))
    return first, tokens


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


@pytest.mark.parametrize("name", ["qwen3", "gemma3", "gemma2", "phi3"])
def test_lowered_to_8da4w(made, tmp_path, name):
    """On ExecuTorch, with the adapter and without: what the quantized decoder computes."""
    folder, path = made(name), tmp_path / "m.pte"
    _, layout, matrices = adapted(name, folder, tmp_path / "task")
    export_base(folder, path, RANK, MODELS[name][2], "8da4w", CONTEXT)
    decoder = decoder_of(folder, layout)
    quantize_decoder(decoder, scheme_of("8da4w"))
    forward = load_program(path, "forward").method("forward")
    for on in (True, False):
        wanted, _ = greedy(decoder, on, matrices)
        logits, _ = greedy(lambda *inputs: forward.execute(inputs)[0], on, matrices)
        assert (logits - wanted).abs().max() < 0.05 * wanted.abs().max()
