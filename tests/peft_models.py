"""Tiny models of many architectures, and what PEFT itself writes for them."""

from __future__ import annotations

import torch
import transformers

SMALL = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
ATTENTION = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
IDS = torch.tensor([[3, 9, 27, 17, 51, 25, 11, 33]])


def build(name: str, **changes):
    """The same tiny model each time; matrices large enough that an adapter is felt."""
    torch.manual_seed(0)
    config, model = _config(name)
    config = config(**changes) if changes else config()
    model = model(config).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(3)
    return model


def _config(name: str):
    cls = getattr(transformers, name)
    if name.startswith(("Llama", "Qwen2", "Gemma", "Phi3", "Mistral")):
        more = {"pad_token_id": 0} if name.startswith("Phi3") else {}
        more |= {"head_dim": 8} if name.startswith("Gemma") else {}
        return (lambda **k: cls.config_class(**{**SMALL, **ATTENTION, **more, **k})), cls
    if name.startswith("Bert"):
        heads = {"num_attention_heads": 4, "max_position_embeddings": 64}
        return (lambda **k: cls.config_class(**SMALL, **heads, **k)), cls
    if name.startswith("GPT2"):
        return (
            lambda **k: cls.config_class(vocab_size=64, n_embd=32, n_layer=2, n_head=4, **k)
        ), cls
    if name.startswith("T5"):
        sizes = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2}
        more = {"num_heads": 4, "decoder_start_token_id": 0}
        return (lambda **k: cls.config_class(**sizes, **more, **k)), cls
    sizes = {
        "vocab_size": 64, "num_mel_bins": 8, "d_model": 32, "encoder_layers": 2,
        "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
        "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_source_positions": 16,
        "max_target_positions": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
        "decoder_start_token_id": 1,
    }  # fmt: skip
    return (lambda **k: cls.config_class(**sizes, **k)), cls


def inputs(model) -> dict[str, torch.Tensor]:
    kind = model.config.model_type
    if kind == "whisper":
        features = torch.randn(1, 8, 32, generator=torch.Generator().manual_seed(5))
        return {"input_features": features, "decoder_input_ids": IDS[:, :4]}
    if kind == "t5":
        return {"input_ids": IDS, "decoder_input_ids": IDS[:, :4]}
    return {"input_ids": IDS}


def output(model) -> torch.Tensor:
    with torch.no_grad():
        out = model.eval()(**inputs(model))
    return (out.logits if getattr(out, "logits", None) is not None else out[0]).float()


def train(model, seed: int, scale: float = 0.1):
    """Random steps on whatever the adapter holds, in place of training."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        if any(part in name for part in ("lora_", "vera_lambda")) and parameter.requires_grad:
            parameter.data += scale * torch.randn(parameter.shape, generator=generator)
    return model
