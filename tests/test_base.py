"""The base program's weights: schemes, GPTQ, GGUF files, and what they cost against float32."""

import json
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from conftest import DIM, HEADS, INTERMEDIATE, KV_HEADS, LAYERS, VOCAB, hydrapack
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge_transform_and_lower
from safetensors.torch import load_file
from tokenizers import Tokenizer

from hydrapack.adapters.prompt import start_ids
from hydrapack.analysis.describe import describe
from hydrapack.base import smollm2, source
from hydrapack.base.calibrate import input_products
from hydrapack.base.config import FULL, rope_tables
from hydrapack.base.decoder import Decoder
from hydrapack.base.export import export_base
from hydrapack.base.gguf import Blocks, GgufModel, _split_q4_k
from hydrapack.base.gptq import gptq
from hydrapack.base.integers import BlockLinear, bf16_scales, quantize_decoder, to_int4, to_int8
from hydrapack.base.lower import lower_decoder
from hydrapack.base.quality import compare, decoder_logits, encode_rows, program_logits
from hydrapack.base.scheme import KINDS, choose_quant, scheme_of
from hydrapack.base.source import Source
from hydrapack.base.weights import load_weights
from hydrapack.support.errors import HydrapackError
from hydrapack.support.texts import read_texts

TEXT = ["what is this, and who made it?", "Grüße! one two three four five six"]


def decoder_of(model: Path, context: int = 128) -> Decoder:
    read = Source(str(model))
    decoder = Decoder(read.config, None, context)
    load_weights(decoder, read)
    return decoder.requires_grad_(False)


def rows_of(model: Path) -> list[list[int]]:
    return encode_rows(Tokenizer.from_file(str(model / "tokenizer.json")), TEXT, 128)


# Schemes


@pytest.mark.parametrize("quant", ["fp32", "8da8w", "8da4w", "mixed"])
def test_a_program_is_the_decoder_quantized_in_eager_mode(one_layer, exported, quant):
    rows = rows_of(one_layer)
    decoder = decoder_of(one_layer)
    reference = decoder_logits(decoder, rows)
    formats = quantize_decoder(decoder, scheme_of(quant))
    eager = decoder_logits(decoder, rows)
    model = exported(None, base=one_layer, quant=quant, max_context=100)
    assert formats == scheme_of(quant)
    lowered = program_logits(model, rows)
    against_eager = compare(eager, lowered)
    assert against_eager.tokens == sum(map(len, rows)) > 40
    assert against_eager.kl_nats < 1e-3
    if quant == "fp32":
        assert compare(reference, lowered).kl_nats < 1e-6
    else:
        # What rounding costs is far more than what lowering changes.
        assert compare(reference, lowered).kl_nats > 3 * against_eager.kl_nats
    # The scheme stands in the program and beside it.
    described = describe(model)
    assert described["get_quant"] == quant
    assert described["get_quant_scheme"] == formats
    beside = json.loads(model.with_name("model.pte.json").read_text())
    assert beside["get_quant_scheme"] == formats and beside["get_quant"] == quant


def test_lowering_keeps_no_weight_that_is_stored(one_layer, tmp_path):
    """The vocabulary's integers, held once for input and output, are needed for longer."""
    decoder = decoder_of(one_layer)
    decoder.config = replace(decoder.config, tied_embeddings=True)
    quantize_decoder(decoder, scheme_of("8da4w"))
    head = decoder.output.lm_head.weight.qdata
    assert head.data_ptr() == decoder.embed.rows.data_ptr()
    others = [layer.linear.weight.qdata for layer in decoder.mlp_outputs]
    lower_decoder(decoder, {}, tmp_path / "m.pte")
    assert [weight.untyped_storage().nbytes() for weight in others] == [0]
    assert head.untyped_storage().nbytes() == head.numel()
    # Programs of others in this process keep theirs.
    linear = torch.nn.Linear(8, 8).requires_grad_(False)
    theirs = torch.export.export(linear, (torch.ones(1, 8),))
    to_edge_transform_and_lower(theirs, partitioner=[XnnpackPartitioner()])
    assert linear.weight.untyped_storage().nbytes() == 8 * 8 * 4


def test_schemes_rank_by_size_and_error(one_layer, exported):
    rows = rows_of(one_layer)
    decoder = decoder_of(one_layer)
    reference = decoder_logits(decoder, rows)
    nats, sizes = {}, {}
    for quant in ("8da4w", "mixed", "8da8w"):
        model = exported(None, base=one_layer, quant=quant, max_context=100)
        nats[quant] = compare(reference, program_logits(model, rows)).kl_nats
        sizes[quant] = model.stat().st_size
    assert sizes["8da4w"] < sizes["mixed"] < sizes["8da8w"]
    assert nats["8da4w"] > nats["mixed"] > nats["8da8w"] > 0


def test_the_default_follows_the_size():
    def config_of(layers: int, dim: int, vocab: int):
        raw = {
            "model_type": "llama", "hidden_size": dim, "num_hidden_layers": layers,
            "num_attention_heads": dim // 64, "intermediate_size": 3 * dim, "vocab_size": vocab,
            "rms_norm_eps": 1e-5, "max_position_embeddings": 512, "tie_word_embeddings": True,
        }  # fmt: skip
        return source.parse_config(raw, "c")

    small, large = config_of(30, 576, 49152), config_of(16, 2048, 128256)
    assert choose_quant(small, lambda: False)[0] == "8da8w"
    assert choose_quant(large, lambda: False)[0] == "8da4w"
    quant, why = choose_quant(large, lambda: True)
    assert quant == "gguf" and "not rounded again" in why


def test_the_vocabulary_matrix_alone():
    assert scheme_of("8da4w")["lm_head"] == "int8"
    assert scheme_of("8da4w", "int4")["lm_head"] == "int4"


def test_four_bit_scales_are_searched_bfloat16_and_above_zero():
    torch.manual_seed(0)
    weight = torch.randn(48, 96)
    weight[3, :32] = 0
    weight[5] *= 1e-3
    stored = to_int4(weight)
    assert stored.values.dtype == torch.int8
    assert int(stored.values.min()) >= -8 and int(stored.values.max()) <= 7
    assert torch.equal(stored.scales, stored.scales.to(torch.bfloat16).float())
    assert bool((stored.scales > 0).all())
    assert torch.equal(stored.dequantize()[3, :32], torch.zeros(32))
    groups = weight.reshape(48, 3, 32)
    plain = bf16_scales(groups.abs().amax(-1, keepdim=True) / 7)
    affine = ((groups / plain).round().clamp(-8, 7) * plain).flatten(1)
    searched = (stored.dequantize() - weight).square().sum()
    assert float(searched) < 0.95 * float((affine - weight).square().sum())
    bytes_ = to_int8(weight)
    assert (
        float((bytes_.dequantize() - weight).abs().max()) <= float(bytes_.scales.max()) / 2 + 1e-6
    )
    with pytest.raises(
        HydrapackError, match="a linear with 40 inputs: 4 bits need a multiple of 32"
    ):
        to_int4(torch.randn(4, 40))


def test_the_switch_of_the_adapter_is_read_once_a_call(tiny):
    """One comparison in the program, whatever its layers."""
    from executorch.exir._serialize._program import deserialize_pte_binary

    plans = deserialize_pte_binary(tiny[0].read_bytes()).program.execution_plan
    (forward,) = (plan for plan in plans if plan.name == "forward")
    called = [
        forward.operators[i.instr_args.op_index].name
        for chain in forward.chains
        for i in chain.instructions
        if type(i.instr_args).__name__ == "KernelCall"
    ]
    assert called.count("aten::mm") > 2 * LAYERS
    assert called.count("aten::ne") == 1


# GPTQ


def test_gptq_changes_outputs_less_on_the_inputs_it_is_fitted_to():
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(128, 24, generator=generator)
    inputs = torch.randn(400, 24, generator=generator) @ mixing.T
    inputs += 0.05 * torch.randn(400, 128, generator=generator)
    weight = torch.randn(64, 128, generator=generator)
    values, scales = gptq(weight, inputs.T @ inputs, 32, lambda group: to_int4(group).scales[:, 0])
    assert int(values.min()) >= -8 and int(values.max()) <= 7
    fitted = (values.float().reshape(64, 4, 32) * scales[..., None]).flatten(1)
    plain = to_int4(weight).dequantize()

    def error(rounded):
        return float((inputs @ (rounded - weight).T).square().sum())

    assert error(fitted) < 0.5 * error(plain)


def test_input_products_are_those_of_the_linears(tiny_model):
    decoder, rows = decoder_of(tiny_model), rows_of(tiny_model)
    products = input_products(decoder, rows)
    assert len(products) == 5 * LAYERS + 1
    seen = []
    handle = decoder.mlp_outputs[1].linear.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    decoder_logits(decoder, rows)
    handle.remove()
    wanted = sum(x.flatten(0, -2).T @ x.flatten(0, -2) for x in seen)
    assert torch.allclose(products["mlp_outputs.1.linear"], wanted, rtol=1e-4)
    assert products["mlp_outputs.1.linear"].shape == (INTERMEDIATE, INTERMEDIATE)


def test_calibration_is_kept_only_where_it_helps(one_layer, tmp_path, monkeypatch):
    text = tmp_path / "text.jsonl"
    lines = [
        {"input": f"what is {i}", "output": f"it is the number {i * 7} of them"} for i in range(12)
    ]
    text.write_text("".join(json.dumps(line) + "\n" for line in lines))
    made = export_base(
        str(one_layer), tmp_path / "m.pte", None, quant="8da4w", max_context=64,
        calibrate=str(text),
    )  # fmt: skip
    held = made.calibration
    assert held is not None and held.kept == (held.with_gptq.kl_nats < held.without.kl_nats)
    assert held.without.tokens > 20
    decoder, rows = decoder_of(one_layer), rows_of(one_layer)
    quantize_decoder(decoder, scheme_of("8da4w"))
    plain = compare(decoder_logits(decoder, rows), program_logits(tmp_path / "m.pte", rows))
    # The program is another one than the plain one exactly where GPTQ was kept.
    assert (plain.kl_nats > 1e-3) == held.kept
    # One that makes it worse is left out.
    import hydrapack.base.integers as quantize

    def worse(weight, hessian, group_size, choose_scales):
        stored = to_int4(weight)
        return torch.zeros_like(stored.values), stored.scales

    monkeypatch.setattr(quantize, "gptq", worse)
    made = export_base(
        str(one_layer), tmp_path / "w.pte", None, quant="8da4w", lm_head="int4", max_context=64,
        calibrate="self",
    )  # fmt: skip
    assert made.calibration is not None and not made.calibration.kept
    scheme = json.loads((tmp_path / "w.pte.json").read_text())["get_quant_scheme"]
    assert scheme == made.scheme == scheme_of("8da4w", "int4")
    decoder = decoder_of(one_layer)
    quantize_decoder(decoder, scheme)
    left = compare(decoder_logits(decoder, rows), program_logits(tmp_path / "w.pte", rows))
    assert left.kl_nats < 1e-3


# GGUF


def write_gguf(
    path: Path, model: Path, kind: str, names=None, architecture="llama", bos=False
) -> Path:
    """The tiny model as a GGUF file, its linears in the format ``kind``."""
    tensors = load_file(model / "model.safetensors")
    config = json.loads((model / "config.json").read_text())
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(DIM)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(INTERMEDIATE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(VOCAB)
    vocabulary = Tokenizer.from_file(str(model / "tokenizer.json")).get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.get)
    # transformers reads no vocabulary without a merge.
    tokens += ["Ġt", *(f"<unused{i}>" for i in range(VOCAB - len(tokens) - 1))]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if t.startswith("<") and len(t) > 1 else 1 for t in tokens])
    writer.add_token_merges(["Ġ t"])
    writer.add_bos_token_id(1)
    writer.add_add_bos_token(bos)
    writer.add_eos_token_id(2)
    map_ = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, LAYERS)
    for name, value in tensors.items():
        data = value.float().numpy()
        heads = {"q_proj": HEADS, "k_proj": KV_HEADS}.get(name.split(".")[-2])
        if heads:
            shape = (heads, 2, data.shape[0] // heads // 2, data.shape[1])
            data = np.ascontiguousarray(data.reshape(shape).swapaxes(1, 2).reshape(data.shape))
        own = kind if "proj" in name and (names is None or names in name) else "Q8_0"
        stored = gguf.GGMLQuantizationType.F32 if data.ndim == 1 else gguf.GGMLQuantizationType[own]
        target = map_.get_name(name, try_suffixes=(".weight",))
        writer.add_tensor(f"{target}", gguf.quantize(data, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("bos", [False, True])
def test_a_gguf_says_whether_a_text_begins_with_bos(tiny_model, tmp_path, bos):
    path = write_gguf(tmp_path / "m.gguf", tiny_model, "Q8_0", bos=bos)
    tokenizer = Tokenizer.from_buffer(Source(str(path)).tokenizer())
    assert start_ids(tokenizer) == [1] * bos


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
def test_gguf_weights_are_those_of_transformers(tiny_model, tmp_path, kind, monkeypatch):
    monkeypatch.setattr("hydrapack.base.gguf._PIECE", 150)  # A row or two at a time.
    from transformers import AutoModelForCausalLM

    path = write_gguf(tmp_path / "m.gguf", tiny_model, kind)
    read = Source(str(path))
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=path.name, dtype=torch.float32
    ).state_dict()
    names = [name for name in theirs if name in read]
    assert len(names) == 9 * LAYERS + 3
    for name in names:
        assert torch.equal(read.read(name), theirs[name]), name
        blocks = read.blocks(name)
        assert (blocks is None) == (kind == "Q8_0" or "proj" not in name)
        if blocks is not None:
            assert blocks.scales.min() >= 0
            assert torch.allclose(dequantized(blocks), theirs[name], atol=1e-6)
    assert read.weights_sha256 == source.file_sha256(path)
    assert read.name == "m.gguf"


def dequantized(blocks: Blocks) -> torch.Tensor:
    levels = blocks.levels.float().reshape(*blocks.scales.shape, 32) - 8
    return (levels * blocks.scales[..., None] + blocks.offsets[..., None]).flatten(1)


def test_q4_k_blocks():
    """Random super-blocks, as the package gguf reads them."""
    generator = np.random.default_rng(0)
    data = generator.integers(0, 256, (6, 2 * 144), dtype=np.uint8)
    for at in (0, 2, 144, 146):
        data[:, at : at + 2] = generator.normal(0, 0.1, (6, 1)).astype(np.float16).view(np.uint8)
    theirs = gguf.dequantize(data, gguf.GGMLQuantizationType.Q4_K)
    own = Blocks(*(torch.from_numpy(part) for part in _split_q4_k(data)))
    assert own.levels.shape == (6, 512) and own.scales.min() >= 0
    assert np.allclose(dequantized(own).numpy(), theirs, atol=1e-5)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1"])
def test_gguf_blocks_are_not_rounded_again(one_layer, tmp_path, kind):
    """The program is nearer to the file's values than the same file rounded to int4 anew."""
    path = write_gguf(tmp_path / "m.gguf", one_layer, kind)
    done = hydrapack(
        "export-base", path, "-o", tmp_path / "m.pte", "--rank", 4, "--max-context", 64
    )
    assert done.returncode == 0, done.stderr
    assert "gguf (the file's own 4-bit blocks, not rounded again)" in done.stdout
    made = json.loads((tmp_path / "m.pte.json").read_text())
    scheme = dict.fromkeys(KINDS, "blocks") | {"lm_head": "int8", "embed": "int8"}
    assert made["get_quant"] == "gguf" and made["get_quant_scheme"] == scheme
    decoder = decoder_of(path)
    rows = rows_of(one_layer)
    reference = decoder_logits(decoder, rows)
    taken = compare(reference, program_logits(tmp_path / "m.pte", rows)).kl_nats
    bytes_, again = decoder_of(path), decoder_of(path)
    quantize_decoder(bytes_, scheme_of("8da8w"))
    quantize_decoder(again, scheme_of("8da4w"))
    at_8_bits = compare(reference, decoder_logits(bytes_, rows)).kl_nats
    at_4_bits = compare(reference, decoder_logits(again, rows)).kl_nats
    assert 0 < taken < 2 * at_8_bits < at_4_bits / 4
    assert (tmp_path / "tokenizer.json").stat().st_size > 1000


def test_block_linear_is_exact_up_to_its_input():
    torch.manual_seed(0)
    blocks = Blocks(
        torch.randint(0, 16, (8, 64), dtype=torch.uint8),
        torch.rand(8, 2).to(torch.bfloat16).float(),
        torch.randn(8, 2),
    )
    blocks.scales[2, 1] = 0
    x = torch.randn(3, 64)
    integers = torch.nn.Linear(64, 8, bias=False)
    levels = (blocks.levels.float().reshape(8, 2, 32) - 8) * blocks.scales[..., None]
    integers.weight.data = levels.flatten(1)
    found = BlockLinear(integers, blocks.offsets)(x)
    assert torch.allclose(found, x @ dequantized(blocks).T, atol=1e-4)


def test_a_gguf_of_several_formats(one_layer, tmp_path):
    """As Q4_K_M files are: v in another format than q and k makes the fused linear int8."""
    path = write_gguf(tmp_path / "m.gguf", one_layer, "Q4_1", names="mlp")
    made = export_base(str(path), tmp_path / "m.pte", None, max_context=64)
    assert made.quant == "gguf"
    assert made.scheme["q"] == "int8" and made.scheme["up"] == "blocks"
    with pytest.raises(HydrapackError, match=r"`quant` gguf: .* no GGUF file with blocks"):
        export_base(str(one_layer), tmp_path / "n.pte", None, quant="gguf", max_context=64)


def test_llama3_rope_of_a_gguf(tiny_model, tmp_path):
    """rope_freqs divides the frequencies; transformers' reader knows nothing of it."""
    factors = [1.0, 2.0, 4.0, 8.0, 8.0, 8.0, 8.0, 8.0]
    path = write_gguf(tmp_path / "m.gguf", tiny_model, "Q8_0")
    reader = GgufModel(path)
    plain = Source(str(path)).config
    reader._rope_factors = factors
    raw = reader.config()
    config = source.parse_config(raw, "m.gguf")
    cos, _ = rope_tables(config, FULL, 5)
    expected = 10000.0 ** -(torch.arange(0, 16, 2) / 16) / torch.tensor(factors)
    assert torch.allclose(cos[4], (4 * expected).cos(), atol=1e-6)
    assert not torch.allclose(cos[4], rope_tables(plain, FULL, 5)[0][4], atol=1e-3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: b"GGML" + data[4:], "not a GGUF file"),
        (lambda data: data[:200], "not a GGUF file"),
        (lambda data: b"", "not a GGUF file"),
        (lambda data: data.replace(b"llama", b"bloom"), "'bloom' is not supported"),
    ],
)
def test_gguf_files_that_are_none(tiny_model, tmp_path, change, words):
    path = write_gguf(tmp_path / "m.gguf", tiny_model, "Q4_0")
    path.write_bytes(change(path.read_bytes()))
    done = hydrapack("export-base", path, "-o", tmp_path / "m.pte", "--rank", 4)
    assert done.returncode == 2 and words in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) == 1 and not (tmp_path / "m.pte").exists()


# Names


def test_a_hub_id_is_the_hubs_model(monkeypatch, tiny_model):
    asked = []

    def snapshot_download(name, **options):
        asked.append(name)
        return str(tiny_model)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    monkeypatch.setattr(smollm2, "gguf_file", lambda: pytest.fail("the demo's model"))
    monkeypatch.setattr(smollm2, "base_model_directory", lambda: pytest.fail("the demo's model"))
    hub = "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert Source(hub).name == hub and asked == [hub]
    assert smollm2.NAME == "demo:smollm2-135m-q4_1"
    with pytest.raises(HydrapackError, match="demo:other: no such folder"):
        Source("demo:other")


# What it costs


def test_report(one_layer, tmp_path):
    text = tmp_path / "lines.txt"
    text.write_text("\n".join(TEXT) + "\n\n")
    done = hydrapack(
        "export-base", one_layer, "-o", tmp_path / "m.pte", "--rank", 4, "--max-context", 64,
        "--report", "--text", text, "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert made["quant"] == "8da8w" and "M parameters" in made["why"]
    rows = rows_of(one_layer)
    rows = [row[:64] for row in rows]
    wanted = compare(
        decoder_logits(decoder_of(one_layer), rows), program_logits(tmp_path / "m.pte", rows)
    )
    assert made["quality"]["tokens"] == wanted.tokens == sum(map(len, rows))
    assert made["quality"]["kl_nats"] == pytest.approx(wanted.kl_nats, rel=1e-3)
    assert 0 < made["quality"]["kl_nats"] < 0.2
    assert 0.5 < made["quality"]["top1_agreement"] <= 1


def test_compare_is_the_divergence():
    wanted = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1]]).log()
    found = torch.tensor([[0.5, 0.3, 0.2], [0.5, 0.4, 0.1]]).log()
    quality = compare([wanted], [found])
    assert quality.kl_nats == pytest.approx(float((wanted.exp() * (wanted - found)).sum()) / 2)
    assert quality.top1_agreement == 0.5 and quality.tokens == 2


def test_texts(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"text": "one"}\n\n{"input": "a", "output": "b"}\n')
    assert read_texts(path) == ["one", "a\nb"]
    for content, words in (
        ('{"text": 5}', "t.jsonl:1: needs a text"),
        ("[]", "t.jsonl:1: needs a text"),
        ("{", "t.jsonl:1: not JSON"),
        ("\n", "has no text"),
    ):
        path.write_text(content)
        with pytest.raises(HydrapackError, match=words):
            read_texts(path)
    with pytest.raises(HydrapackError, match="cannot be read"):
        read_texts(tmp_path / "none.txt")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--quant", "int3"), "--quant int3: choose one of 8da4w"),
        (("--quant", "fp32", "--lm-head", "int8"), "--lm-head: needs a quantized base"),
        (("--lm-head", "int2"), "--lm-head int2: choose int8 or int4"),
        (("--quant", "8da8w", "--calibrate", "self"), "fits int4 values, and --quant 8da8w"),
        (("--text", "x.txt"), "--text: needs --report"),
        (("--report", "--text", "none.txt"), "none.txt: cannot be read"),
        (("--quant", "8da4w", "--calibrate", "none.txt"), "none.txt: cannot be read"),
    ],
)
def test_options_that_do_not_fit(tiny_model, tmp_path, options, words):
    done = hydrapack("export-base", tiny_model, "-o", tmp_path / "m.pte", "--rank", 4, *options)
    assert done.returncode == 2 and words in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) == 1 and list(tmp_path.iterdir()) == []


def test_a_base_for_a_bundle(tiny_model, adapters, tmp_path):
    """Rank and target modules come from what merge wrote, so that pack finds them."""
    bundle, model = tmp_path / "bundle", tmp_path / "model.pte"
    done = hydrapack("merge", *adapters, "-o", bundle, "--rank", "3")
    assert done.returncode == 0, done.stderr
    run = ("export-base", tiny_model, "-o", model, "--max-context", "64", "--quant", "fp32")
    for arguments, words in [
        ((), "give --rank, or --bundle"),
        (("--bundle", bundle, "--rank", "4"), "--bundle: gives the rank"),
        (("--bundle", tmp_path), "bundle.json: cannot be read"),
    ]:
        done = hydrapack(*run, *arguments)
        assert done.returncode == 2 and words in done.stderr and not model.exists()
    done = hydrapack(*run, "--bundle", bundle, "--report")
    assert done.returncode == 0, done.stderr
    assert "0.0000 nats a token from float32" in done.stdout
    done = hydrapack("pack", bundle, "-o", tmp_path / "package", "--model", model, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rank"] == 3
