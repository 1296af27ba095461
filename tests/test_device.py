"""The whole path on the ExecuTorch runtime, against transformers + PEFT."""

import json
import shutil
import threading
from dataclasses import replace

import pytest
import torch
from conftest import TASKS, TEMPLATE, hydrapack, make_package, write_adapter
from safetensors.torch import save_file

from hydrapack.adapters.collect import read_adapters
from hydrapack.adapters.prompt import encode_prompt
from hydrapack.base import smollm2
from hydrapack.base.export import export_base
from hydrapack.bundle.format import Bundle
from hydrapack.bundle.stored import store
from hydrapack.device import Session
from hydrapack.merging.candidates import Choice
from hydrapack.merging.plan import Plan, Request
from hydrapack.merging.planned import merge_budget, merge_plan
from hydrapack.merging.uniform import merge_adapters
from hydrapack.packing.manifest import (
    MANIFEST,
    BaseModelInfo,
    TaskGeneration,
    manifest_text,
    read_manifest,
    read_package,
    sealed,
)
from hydrapack.packing.package import pack
from hydrapack.packing.signature import SIGNATURE, sign_manifest
from hydrapack.program.layout import layout_of, pack_a, pack_b
from hydrapack.program.quantized import Precision
from hydrapack.support.errors import (
    Busy,
    ContextFull,
    HydrapackError,
    Invalid,
    Io,
    Mismatch,
    NotFound,
)

TEXT = "Grüße! <|end|> what"


def head_as_peft_adapter(bundle, task, folder):
    """The task's merged weights as a PEFT folder: alpha = rank, so the scaling is 1."""
    folder.mkdir(parents=True)
    tensors = {}
    for name, b in bundle.head(task).items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = bundle.modules[name].A.contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = b.contiguous()
    save_file(tensors, folder / "adapter_model.safetensors")
    rank = bundle.info.rank
    targets = sorted({n.rsplit(".", 1)[1] for n in bundle.info.modules})
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": rank}
    (folder / "adapter_config.json").write_text(json.dumps({**config, "target_modules": targets}))
    return folder


def base_of(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def reference(base, adapter_folder, ids, new_tokens):
    """(logits after ids, greedy continuation) of transformers + PEFT in float32."""
    from peft import PeftModel

    model = base
    if adapter_folder is not None:
        model = PeftModel.from_pretrained(base, str(adapter_folder))
    prompt = torch.tensor([ids])
    with torch.no_grad():
        logits = model(prompt).logits[0, -1]
        new = model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=new_tokens,
            do_sample=False,
            eos_token_id=-1,
        )
    if adapter_folder is not None:
        model.unload()
    return logits, new[0, len(ids) :].tolist()


def greedy(session, ids, count):
    session.reset()
    logits = first = session.forward(ids)
    tokens = [int(logits.argmax())]
    while len(tokens) < count:
        logits = session.forward(tokens[-1:])
        tokens.append(int(logits.argmax()))
    return first, tokens


def assert_same_as_peft(session, package, model_folder, tmp_path, text, count=32):
    bundle, base = Bundle.load(package.parent / "bundle"), base_of(model_folder)
    for task in bundle.info.tasks:
        session.use(task.name)
        ids = session.encode(text)
        logits, tokens = greedy(session, ids, count)
        folder = head_as_peft_adapter(bundle, task, tmp_path / "peft" / task.name)
        expected_logits, expected = reference(base, folder, ids, count)
        assert (logits - expected_logits).abs().max() < 1e-3
        assert tokens == expected
    session.use(None)
    logits, tokens = greedy(session, ids, count)
    expected_logits, expected = reference(base, None, ids, count)
    assert (logits - expected_logits).abs().max() < 1e-3
    assert tokens == expected


def test_same_as_peft(tiny, tiny_model, tmp_path):
    session = Session(tiny[0], tiny[1])
    assert session.tasks == list(TASKS)
    assert_same_as_peft(session, tiny[1], tiny_model, tmp_path, TEXT)


def test_a_prompt_of_several_calls(tiny, tiny_model, exported, tmp_path):
    """A call takes 128 tokens at most."""
    session = Session(exported(4, quant="fp32", max_context=256), tiny[1])
    assert session.model_constant("get_max_seq_len") == 128
    text = "a long text of many words " * 8
    assert 128 + 32 < len(session.use("one").encode(text)) < 256 - 32
    assert_same_as_peft(session, tiny[1], tiny_model, tmp_path, text)


def test_long_text_in_steps_of_the_cache(tiny, tiny_model):
    """Past a multiple of 64 positions the attended part of the cache grows."""
    session = Session(tiny[0], tiny[1])
    ids = torch.randint(5, 260, (100,), generator=torch.Generator().manual_seed(0)).tolist()
    session.forward(ids[:60])
    for token in ids[60:70]:
        session.forward([token])
    logits = session.forward(ids[70:])
    expected, _ = reference(base_of(tiny_model), None, ids, 1)
    assert (logits - expected).abs().max() < 1e-3


def test_swaps_are_exact(tiny):
    session = Session(tiny[0], tiny[1])
    logits = {}
    for task in ("one", "two", "three", "one"):
        session.use(task)
        assert session.position == 0
        now = session.forward(session.encode(TEXT))
        if task in logits:
            assert torch.equal(now, logits[task])
        logits[task] = now
    session.use(None)
    bare = session.forward(session.encode(TEXT))
    routes = {t.name: t.route for t in session.manifest.tasks}
    assert any(routes["one"] != route for route in routes.values())
    for task in TASKS:
        assert not torch.equal(logits[task], bare)
        for other in TASKS:
            assert torch.equal(logits[task], logits[other]) == (routes[task] == routes[other])


@pytest.mark.parametrize("targets", ["q,v", "o,gate,down", "q,k,v,o,gate,up,down"])
def test_any_target_modules(one_layer, exported, tmp_path, targets):
    from hydrapack.program.layout import module_name, parse_targets

    wanted = parse_targets(targets)
    names = [module_name(0, t) for t in wanted]
    adapters = [write_adapter(tmp_path / t, seed=k, names=names) for k, t in enumerate("xy")]
    package = make_package(tmp_path, adapters)
    model = exported(4, wanted, base=one_layer, quant="fp32", max_context=64)
    assert_same_as_peft(Session(model, package), package, one_layer, tmp_path, TEXT)


def test_8da4w_is_the_quantized_decoder(tiny, tiny_model, exported):
    """The lowered program computes what torchao's quantized modules do in eager mode."""
    from hydrapack.base.config import read_config
    from hydrapack.base.decoder import Decoder
    from hydrapack.base.integers import quantize_decoder
    from hydrapack.base.scheme import scheme_of
    from hydrapack.base.source import Source
    from hydrapack.base.weights import load_weights

    model = exported(4, quant="8da4w", max_context=100)
    assert model.stat().st_size < tiny[0].stat().st_size / 2
    session = Session(model, tiny[1])
    config = read_config(tiny_model)
    decoder = Decoder(config, config.layout(("q", "k", "v", "o"), 4), 128)
    load_weights(decoder, Source(str(tiny_model)))
    with torch.no_grad():
        quantize_decoder(decoder, scheme_of("8da4w"))
        for task in TASKS:
            ids = session.use(task).encode(TEXT)
            positions = torch.arange(len(ids))
            expected = decoder(
                torch.tensor([ids]), positions, positions[-1:], torch.tensor(1),
                *session._programs.matrices,
            )[0, 0]  # fmt: skip
            logits = session.forward(ids)
            assert (logits - expected).abs().max() < 0.05 * expected.abs().max()


def test_qwen2_with_biases(tiny, tmp_path):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(1)
    config = Qwen2Config(
        vocab_size=300,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.2,
        tie_word_embeddings=True,
    )
    model = Qwen2ForCausalLM(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path / "qwen")
    shutil.copy(tiny[0].parent / "tokenizer.json", tmp_path / "qwen")
    export_base(str(tmp_path / "qwen"), tmp_path / "m.pte", 4, quant="fp32", max_context=100)
    session = Session(tmp_path / "m.pte", tiny[1])
    assert_same_as_peft(session, tiny[1], tmp_path / "qwen", tmp_path, TEXT)


@pytest.mark.parametrize(("bits", "heads"), [(4, 2), (8, 3), (16, 2)])
def test_program_gives_the_rounded_bundle(tiny, tmp_path, bits, heads):
    adapters = [tiny[2] / task for task in TASKS]
    package = make_package(tmp_path, adapters, bits=bits, heads=heads)
    session = Session(tiny[0], package)
    bundle = Bundle.load(tmp_path / "bundle")
    layout = layout_of(bundle.shapes, bundle.info.rank)
    limit = {4: 1 / 3, 8: 1 / 120, 16: 2**-10}[bits]
    exact = pack_a(layout, {n: m.A for n, m in bundle.modules.items()})
    assert (session._programs.a - exact).abs().max() <= limit * exact.abs().max()
    for task in bundle.info.tasks:
        session.use(task.name)
        exact = pack_b(layout, bundle.head(task))
        assert (session._programs.b - exact).abs().max() <= limit * exact.abs().max()
    for task in read_manifest(package).tasks:
        assert task.merge_relative_error <= task.packed_relative_error
        assert task.packed_relative_error < task.merge_relative_error + (0.2 if bits == 4 else 0.02)


@pytest.mark.parametrize("bits", [4, 8])
def test_two_sided_and_planned_packages(tiny, tmp_path, bits):
    """Ragged ranks, several widths, U C, factors: the runtime gives the rounded modules."""
    adapters = read_adapters([str(tiny[2] / task) for task in TASKS])
    merged = merge_budget(adapters, 60_000)
    wider = merged.info.model_copy(update={"rank": 4, "budget_bytes": None})
    merges = [merge_adapters(adapters, "two-sided", output_rank=5), replace(merged, info=wider)]
    choices = {
        name: Choice(
            0, 0.0, 3 if i % 2 else 1 + i % 3, 1 + i % 4, 2 * (i % 2) + i // 6, (4, 8, 16)[i % 3]
        )
        for i, name in enumerate(sorted(merged.modules))
    }
    choices = {n: replace(c, head_count=3) if c.output_rank else c for n, c in choices.items()}
    plan = Plan(choices, 4, 1, 0.0)
    planned = merge_plan(Request(adapters), plan, (1.0, 1.0, 1.0))
    assert {bool(module.of) for module in planned.modules.values()} == {False, True}
    merges.append(planned)
    # Widths in the modules' own order: no rows change places.
    whole = merge_adapters(adapters)
    widths = {name: 4 if ".layers.0." in name else 8 for name in whole.modules}
    merges.append(replace(whole, info=whole.info.model_copy(update={"bits": widths})))
    for number, merge in enumerate(merges):
        merge.save(tmp_path / f"b{number}")
        bundle = Bundle.load(tmp_path / f"b{number}")
        widths = bundle.info.bits
        pack(bundle, tmp_path / f"p{number}", None if widths else bits)
        session = Session(tiny[0], tmp_path / f"p{number}")
        layout = layout_of(bundle.shapes, bundle.info.rank)
        rounded = {
            name: store(module, Precision(width, width)).dequantize()
            for name, module in bundle.modules.items()
            for width in [widths[name] if widths else bits]
        }
        pad = torch.nn.functional.pad
        expected = {n: pad(m.A, (0, 0, 0, 4 - m.rank)) for n, m in rounded.items()}
        assert torch.equal(session._programs.a, pack_a(layout, expected))
        for task in bundle.info.tasks:
            session.use(task.name)
            heads = {
                name: pad(rounded[name].head(head), (0, 4 - rounded[name].rank))
                for name, head in zip(bundle.info.modules, task.route, strict=True)
            }
            torch.testing.assert_close(
                session._programs.b, pack_b(layout, heads), rtol=1e-5, atol=1e-6
            )
            session.forward(session.encode(TEXT))


@pytest.mark.parametrize(
    ("fallback", "task"), [("base", None), ("two", "two"), ("error", HydrapackError)]
)
def test_fallback(tiny, tmp_path, fallback, task):
    bundle = Bundle.load(tiny[2] / "bundle")
    pack(bundle, tmp_path / "package", fallback=fallback)
    session = Session(tiny[0], tmp_path / "package")
    if task is HydrapackError:
        with pytest.raises(HydrapackError, match="unknown task 'nine'"):
            session.use("nine")
        return
    assert session.use("nine").task == task


def test_generation(tiny):
    session = Session(tiny[0], tiny[1]).use("two")
    pieces = list(session.generate("abc", max_new_tokens=20))
    assert session.stats.prefill_tokens == len(session.encode("abc"))
    assert session.stats.decode_tokens <= 19 and session.stats.swap_ms > 0
    assert "".join(session.generate("abc", max_new_tokens=20)) == "".join(pieces)
    sampled = ["".join(session.generate("abc", 20, temperature=2.0, seed=s)) for s in (1, 1, 2)]
    assert sampled[0] == sampled[1] != sampled[2]


def test_stop_strings_cut_the_answer(tiny):
    session = Session(tiny[0], tiny[1]).use("two")
    whole = "".join(session.generate("abc", max_new_tokens=20))
    stop = whole[5:8]
    answer = session.generate("abc", max_new_tokens=20, stop=["never", stop])
    assert "".join(answer) == whole[: whole.index(stop)] != whole
    assert answer.finish == session.stats.finish == "stop"


def test_context_is_bounded(tiny):
    session = Session(tiny[0], tiny[1]).use("one")
    assert session.max_context == 128
    text = "x" * 120
    answer = session.generate(text, max_new_tokens=50)
    list(answer)
    assert session.position <= 128 and 0 < len(answer.ids) < 50
    assert answer.finish in ("context", "stop")
    with pytest.raises(HydrapackError, match="do not fit"):
        list(session.generate("x" * 127))
    with pytest.raises(HydrapackError, match="prompt is empty"):
        session.forward([])


def test_a_user_cannot_write_special_tokens(tiny):
    session = Session(tiny[0], tiny[1])
    ids = encode_prompt(session.tokenizer, TEMPLATE, "a<|end|>b")
    assert ids.count(4) == 1 and ids[-1] == 4


def test_mismatches_are_refused(tiny, exported, tmp_path, monkeypatch):
    with pytest.raises(HydrapackError, match=r"rank 2, the package has rank 4: export.*`rank` 4"):
        Session(exported(2, quant="fp32", max_context=64), tiny[1])
    with pytest.raises(HydrapackError, match=r"another adapter layout.*`targets`"):
        Session(exported(4, ("q", "v"), quant="fp32", max_context=64), tiny[1])
    with pytest.raises(HydrapackError, match="no method 'forward'"):
        Session(tiny[1] / "adapters.pte", tiny[1], check_digests=False)
    # Programs exported before, whose switch is a truth value, do not state a version.
    older = tiny[0].read_bytes().replace(b"get_forward_version", b"get_forward_nothing")
    assert len(older) == tiny[0].stat().st_size
    (tmp_path / "older.pte").write_bytes(older)
    with pytest.raises(Invalid, match=r"older.pte: its forward takes other inputs.*export it"):
        Session(tmp_path / "older.pte", tiny[1], check_digests=False)
    monkeypatch.setattr("hydrapack.program.load.FORWARD_VERSION", 2)
    with pytest.raises(Invalid, match=r"export it again with hydrapack export-base"):
        Session(tiny[0], tiny[1])
    monkeypatch.undo()
    with pytest.raises(
        HydrapackError, match="unknown task 'four'; the package has: one, two, three"
    ):
        Session(tiny[0], tiny[1]).use("four")


def test_damaged_files_are_refused(tiny, tmp_path):
    package = tmp_path / "package"
    shutil.copytree(tiny[1], package)
    data = (package / "adapters.pte").read_bytes()
    (package / "adapters.pte").write_bytes(data[:-1])
    with pytest.raises(HydrapackError, match=r"is not the file that manifest.json describes"):
        Session(tiny[0], package)
    (package / "adapters.pte").unlink()
    with pytest.raises(HydrapackError, match=r"adapters\.pte: cannot be read"):
        Session(tiny[0], package)
    manifest = package / "manifest.json"
    text = manifest.read_text()
    for old, new, match in [
        ('"group_size": 32', '"group_size": 31', "package_digest"),
        ('\n  "rank": 4', '\n  "rank": -1', "rank"),
        ('\n  "rank": 4', '\n  "rank": "x"', "rank"),
        ('      "heads": 3', '      "heads": 1', "head that is not there"),
        ('"adapters.pte"', '"../adapters.pte"', r"files\.0\.name"),
        ('"schema_version": 1', '"schema_version": 9', "schema_version"),
        ("{input}", "input", "exactly once"),
        ('"group_size": 32,', '"group_size": 32, "more": 1,', "package_digest"),
        ("{", "", "is not JSON"),
    ]:
        assert old in text
        manifest.write_text(text.replace(old, new, 1))
        with pytest.raises(HydrapackError, match=match):
            Session(tiny[0], package)
    manifest.unlink()
    with pytest.raises(HydrapackError, match=r"manifest\.json: cannot be read"):
        Session(tiny[0], package)
    cut = tmp_path / "cut.pte"
    cut.write_bytes(tiny[0].read_bytes()[:1000])
    with pytest.raises(HydrapackError, match="not an ExecuTorch program"):
        Session(cut, tiny[1], check_digests=False)
    cut.write_bytes(tiny[0].read_bytes()[: tiny[0].stat().st_size // 2])
    with pytest.raises(HydrapackError, match=r"not an ExecuTorch program|cannot be loaded"):
        Session(cut, tiny[1], check_digests=False)
    with pytest.raises(HydrapackError, match="no such file"):
        Session(tmp_path / "none.pte", tiny[1])


def test_run_command(tiny, tmp_path):
    done = hydrapack(
        "run", tiny[1], "hi", "--model", tiny[0], "--task", "one", "--stats", "--max-new-tokens", 3
    )
    assert done.returncode == 0
    assert "swap" in done.stderr and len(done.stderr.splitlines()) == 1
    assert done.stderr.endswith(("finish length\n", "finish stop\n"))
    as_json = hydrapack(
        "run", tiny[1], "-", "--model", tiny[0], "--json", "--temperature", 5, "--top-k", 1,
        "--top-p", 0.5, input="hi",
    )  # fmt: skip
    answer = json.loads(as_json.stdout)
    assert answer["task"] is None and answer["finish"] == answer["stats"]["finish"] != ""
    greedy = hydrapack("run", tiny[1], "hi", "--model", tiny[0], "--json")
    assert json.loads(greedy.stdout)["text"] == answer["text"] != ""
    bad = hydrapack("run", tiny[1], "hi", "--model", tiny[0], "--top-p", 0)
    assert bad.returncode == 2 and "top_p" in bad.stderr and len(bad.stderr.splitlines()) == 1
    bad = hydrapack("run", tiny[1], "hi", "--model", tiny[0], "--task", "nine")
    assert bad.returncode == 2 and bad.stdout == ""
    assert bad.stderr.startswith("hydrapack: error: unknown task 'nine'")
    assert len(bad.stderr.splitlines()) == 1


@pytest.fixture
def copied(tiny, tmp_path):
    """(model.pte, package, folder): copies to damage."""
    for name in ("model.pte", "model.pte.json", "tokenizer.json"):
        shutil.copy(tiny[2] / name, tmp_path)
    shutil.copytree(tiny[1], tmp_path / "package")
    return tmp_path / "model.pte", tmp_path / "package", tmp_path


def flip_last_byte(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def resealed(package, **changes):
    """The manifest with keys changed, and a package_digest that fits."""
    path = package / MANIFEST
    manifest = sealed(read_manifest(package).model_copy(update=changes))
    path.write_text(manifest_text(manifest), encoding="utf-8")


@pytest.mark.parametrize("name", ["model.pte", "package/adapters.pte", "tokenizer.json"])
def test_a_changed_file_is_refused_unless_digests_are_off(copied, name):
    model, package, folder = copied
    if name == "tokenizer.json":
        (folder / name).write_text((folder / name).read_text() + "\n")
    else:
        flip_last_byte(folder / name)
    with pytest.raises(Mismatch, match=name.rsplit("/", maxsplit=1)[-1]):
        Session(model, package)
    Session(model, package, check_digests=False)
    done = hydrapack("run", package, "hi", "--model", model)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and done.stdout == ""
    done = hydrapack("run", package, "hi", "--model", model, "--no-digests")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["model.pte", "package/adapters.pte"])
def test_another_size_is_refused_always(copied, name):
    model, package, folder = copied
    with (folder / name).open("ab") as file:
        file.write(b"x")
    with pytest.raises(Mismatch, match="is not the file that"):
        Session(model, package, check_digests=False)


def test_the_models_description(copied):
    model, package, folder = copied
    described = folder / "model.pte.json"
    text = described.read_text()
    for bad in ("{", "[]", '{"bytes": 1}', text.replace('"bytes": ', '"bytes": -')):
        described.write_text(bad)
        for check_digests in (True, False):
            with pytest.raises(Invalid, match=r"model\.pte\.json"):
                Session(model, package, check_digests=check_digests)
    described.unlink()
    with pytest.raises(NotFound, match=r"model\.pte\.json.*export-base"):
        Session(model, package)
    Session(model, package, check_digests=False)


def test_metadata_is_carried_and_may_be_missing(copied):
    model, package, _ = copied
    assert "metadata" not in json.loads((package / MANIFEST).read_text())
    resealed(package, metadata={"release": "7", "more": [{"a": None}]})
    assert read_package(package).metadata["release"] == "7"
    assert Session(model, package).manifest.metadata == {"release": "7", "more": [{"a": None}]}
    resealed(package, metadata={})
    assert "metadata" not in json.loads((package / MANIFEST).read_text())
    Session(model, package)


def test_fallback_words_are_reserved(copied):
    """A task called base or error is no fallback; asked for by name it is there."""
    model, package, _ = copied
    tasks = read_manifest(package).tasks
    renamed = [
        task.model_copy(update={"name": name})
        for task, name in zip(tasks, ("base", "error", "three"), strict=True)
    ]
    resealed(package, tasks=renamed, fallback="base")
    session = Session(model, package)
    assert session.use("nine").task is None and session.use("base").task == "base"
    resealed(package, tasks=renamed, fallback="error")
    with pytest.raises(NotFound, match="unknown task 'nine'"):
        Session(model, package).use("nine")


def test_what_no_manifest_can_hold_is_refused_when_packing(tiny, tmp_path):
    """One error, and nothing written."""
    done = hydrapack(
        "merge", f"{'x' * 201}={tiny[2] / 'one'}", tiny[2] / "two", "-o", tmp_path / "b"
    )
    assert done.returncode == 0, done.stderr
    done = hydrapack("pack", tmp_path / "b", "-o", tmp_path / "p")
    assert done.returncode == 2 and not (tmp_path / "p").exists()
    assert "at most 200 characters" in done.stderr and len(done.stderr.splitlines()) == 1
    adapter = write_adapter(tmp_path / "c")
    (adapter / "task.json").write_text(json.dumps({"stop": ["x", ""]}))
    done = hydrapack("merge", adapter, tiny[2] / "two", "-o", tmp_path / "d")
    assert done.returncode == 2 and "stop.1" in done.stderr and not (tmp_path / "d").exists()


def read_base_digest(model, method):
    return json.loads(model.with_name("model.pte.json").read_text())[method]


@pytest.mark.parametrize("key", ["weights_sha256", "tokenizer_sha256"])
def test_a_package_bound_to_another_base_is_refused(copied, key):
    """Of the same rank and layout, and with digests off too."""
    model, package, _ = copied
    bound = {"id": "tiny/llama", "tokenizer_sha256": None, "weights_sha256": None}
    resealed(package, base_model=BaseModelInfo(**{**bound, key: "0" * 64}))
    for check_digests in (True, False):
        with pytest.raises(Mismatch, match="the package was made for 000"):
            Session(model, package, check_digests=check_digests)
    own = read_base_digest(model, f"get_{key}")
    resealed(package, base_model=BaseModelInfo(**{**bound, key: own}))
    Session(model, package)


def test_kinds(copied, tmp_path):
    """What a caller can tell apart without reading messages."""
    model, package, folder = copied
    with pytest.raises(NotFound, match="tokenizer"):
        Session(model, package, folder / "none.json")
    (folder / "bad.json").write_text("x")
    with pytest.raises(Invalid, match="not a tokenizer"):
        Session(model, package, folder / "bad.json", check_digests=False)
    with pytest.raises(NotFound):
        Session(folder / "none.pte", package)
    with pytest.raises(NotFound, match="is it a package"):
        Session(model, folder / "none")
    with pytest.raises(NotFound):
        Session(model, package).use("nine")
    (package / MANIFEST).unlink()
    (package / MANIFEST).mkdir()
    with pytest.raises(Io):
        Session(model, package)


def test_signatures(copied, tmp_path):
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    model, package, folder = copied
    key = Ed25519PrivateKey.from_private_bytes(b"\1" * 32)
    public = key.public_key().public_bytes_raw().hex()
    with pytest.raises(NotFound, match="not signed"):
        Session(model, package, public_key=public)
    sign_manifest(package, key)
    Session(model, package, public_key=public)
    with pytest.raises(Mismatch, match="signed by another key"):
        Session(model, package, public_key="0" * 64)
    for bad in ("", "x" * 64, public[1:]):
        with pytest.raises(Invalid, match="public key"):
            Session(model, package, public_key=bad)
    pem = folder / "key.pem"
    pem.write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    done = hydrapack("run", package, "hi", "--model", model, "--public-key", pem)
    assert done.returncode == 0, done.stderr
    # Made anew without the key: consistent in itself, and still refused.
    resealed(package, fallback="base")
    Session(model, package)
    with pytest.raises(Mismatch, match="no signature"):
        Session(model, package, public_key=public)
    done = hydrapack("run", package, "hi", "--model", model, "--public-key", pem)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    (package / SIGNATURE).write_text("{}")
    with pytest.raises(Invalid, match=r"manifest\.sig"):
        Session(model, package, public_key=public)


def test_the_tasks_defaults_are_used(copied):
    model, package, _ = copied
    tasks = read_manifest(package).tasks
    own = {"max_new_tokens": 5, "temperature": 3.0, "top_k": 50, "top_p": 0.75}
    task = tasks[0].model_copy(update={"generation": TaskGeneration(**own)})
    resealed(package, tasks=[task, *tasks[1:]])
    session = Session(model, package).use("one")
    answer = session.generate("abc", seed=3)
    list(answer)
    assert 0 < len(answer.ids) <= 5
    said = session.generate("abc", seed=3, **own)
    list(said)
    assert said.ids == answer.ids
    greedy = session.generate("abc", seed=3, temperature=0)
    list(greedy)
    assert greedy.ids != answer.ids
    # Drawn among one is greedy; a top_p of almost nothing too.
    for option in ({"top_k": 1}, {"top_p": 1e-6}):
        one = session.generate("abc", seed=3, **option)
        list(one)
        assert one.ids == greedy.ids


@pytest.mark.parametrize(
    "option",
    [
        {"max_new_tokens": 0}, {"max_new_tokens": (1 << 20) + 1}, {"max_new_tokens": True},
        {"max_new_tokens": 1.5}, {"temperature": -1}, {"temperature": 101},
        {"temperature": float("nan")}, {"top_k": -1}, {"top_p": 0}, {"top_p": 1.1}, {"seed": -1},
        {"seed": 1 << 64}, {"stop": "text"}, {"stop": [""]}, {"stop": [1]},
        {"prompt_template": "none"}, {"text": "\ud800"},
    ],
)  # fmt: skip
def test_options_out_of_range(one_session, option):
    """Refused when called, not when iterated; the answer before goes on."""
    before = one_session.generate("abc", max_new_tokens=20)
    first = next(before)
    with pytest.raises(Invalid):
        one_session.generate(**{"text": "abc", **option})
    assert first + "".join(before) == "".join(one_session.generate("abc", max_new_tokens=20))


@pytest.fixture(scope="module")
def one_session(tiny):
    return Session(tiny[0], tiny[1]).use("two")


def test_prompts_are_checked_when_called(tiny):
    session = Session(tiny[0], tiny[1]).use("one")
    with pytest.raises(ContextFull, match="do not fit"):
        session.generate("x" * 500)
    with pytest.raises(Invalid, match="prompt is empty"):
        session.use(None).generate("")
    with pytest.raises(Invalid, match="not in the vocabulary"):
        session.forward([300])
    with pytest.raises(Invalid, match="not in the vocabulary"):
        session.forward([-1])


@pytest.mark.parametrize(
    "later",
    [
        lambda s: s.use("one"),
        lambda s: s.use(None),
        lambda s: s.reset(),
        lambda s: s.generate("x"),
        lambda s: s.forward([5]),
        lambda s: s.set_vectors(s._programs.a, s._programs.b),
    ],
)
def test_a_later_call_ends_the_answer(tiny, later):
    session = Session(tiny[0], tiny[1]).use("two")
    old = session.generate("abc", max_new_tokens=20)
    assert next(old) and old.finish == session.stats.finish == ""
    later(session)
    assert old.finish == "stopped"
    assert list(old) == [] and 0 < len(old.ids) < 20


def test_an_old_answer_cannot_disturb_the_new_one(tiny):
    session = Session(tiny[0], tiny[1]).use("two")
    want = "".join(session.generate("abc", max_new_tokens=20))
    # Called under one head and asked for under another, it must not run at all.
    never = session.generate("abc", max_new_tokens=20)
    session.use("one")
    other = "".join(session.generate("abc", max_new_tokens=20))
    assert list(never) == [] and never.finish == "stopped" and other != want
    session.use("two")
    old = session.generate("xyz", max_new_tokens=20)
    next(old)
    new = session.generate("abc", max_new_tokens=20)
    pieces = []
    for piece in new:
        pieces.append(piece)
        assert list(old) == []
        old.close()
    assert "".join(pieces) == want and new.finish == session.stats.finish == "length"
    del old
    assert session.stats.finish == "length"


def test_closing_and_dropping(tiny):
    session = Session(tiny[0], tiny[1]).use("two")
    answer = session.generate("abc", max_new_tokens=20)
    next(answer)
    answer.close()
    assert list(answer) == [] and answer.finish == session.stats.finish == "stopped"
    answer = session.generate("abc", max_new_tokens=20)
    next(answer)
    assert session.stats.finish == ""
    del answer
    assert session.stats.finish == "stopped"


def test_finish_reasons(tiny):
    session = Session(tiny[0], tiny[1]).use("two")
    assert session.stats.finish == ""
    answer = session.generate("abc", max_new_tokens=3)
    list(answer)
    assert answer.finish == "length" and len(answer.ids) == 3
    end = answer.ids[1]
    session._programs.eos_ids = {end}
    answer = session.generate("abc", max_new_tokens=9)
    list(answer)
    assert answer.finish == "stop" and end not in answer.ids
    session._programs.eos_ids = set()
    answer = session.generate("x" * 100, max_new_tokens=100)
    list(answer)
    assert answer.finish == "context" and session.position == session.max_context


def test_a_failed_use_leaves_the_bare_base_model(tiny):
    session = Session(tiny[0], tiny[1])
    bare = session.forward(session.encode("abc"))
    ids = session.encode("abc")
    session.use("two").forward(ids)
    with pytest.raises(NotFound):
        session.use("nine")
    assert session.task is None and session.position == 0
    assert torch.equal(session.forward(ids), bare)


def test_a_second_thread_is_told_that_it_is_busy(tiny):
    """Neither waits nor disturbs: the answer goes on as if nothing had been."""
    session = Session(tiny[0], tiny[1]).use("two")
    want = "".join(session.generate("abc", max_new_tokens=20))
    inside, go_on = threading.Event(), threading.Event()
    append = session._append

    def slow(ids):
        inside.set()
        assert go_on.wait(30)
        return append(ids)

    session._append = slow
    answer = session.generate("abc", max_new_tokens=20)
    pieces = []
    thread = threading.Thread(target=lambda: pieces.extend(answer))
    thread.start()
    assert inside.wait(30)
    for call in (
        lambda: session.use("one"),
        lambda: session.reset(),
        lambda: session.generate("x"),
        lambda: session.forward([5]),
        lambda: session.set_vectors(session._programs.a, session._programs.b),
        lambda: session.encode("x"),
        lambda: next(answer),
        lambda: answer.close(),
    ):
        with pytest.raises(Busy):
            call()
    go_on.set()
    thread.join()
    assert "".join(pieces) == want and answer.finish == "length"


def test_smollm2_and_its_five_adapters(smollm2_program, smollm2_package, tmp_path):
    """The real model and the committed adapters, in float32 from end to end."""
    model, base = smollm2_program("fp32"), smollm2.base_model_directory()
    package = smollm2_package(32)
    session = Session(model, package)
    text = "This package contain a library that help you to write program."
    assert_same_as_peft(session, package, base, tmp_path, text, 16)
    session.use("grammar")
    assert "contains a library that helps" in "".join(session.generate(text, 32))
