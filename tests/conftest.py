"""Small real files for the tests: PEFT adapters and a Llama of a few hundred kilobytes."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
WORKER = "PYTEST_XDIST_WORKER" in os.environ

LAYERS, DIM, HEADS, KV_HEADS, INTERMEDIATE, VOCAB = 2, 64, 4, 2, 96, 300
TEMPLATE = "<|user|>{input}<|end|>"
WIDTHS = {"q": (DIM, DIM), "k": (DIM // 2, DIM), "v": (DIM // 2, DIM), "o": (DIM, DIM)}
WIDTHS |= {"gate": (INTERMEDIATE, DIM), "up": (INTERMEDIATE, DIM), "down": (DIM, INTERMEDIATE)}


def module_names(targets: str = "qkvo", layers: int = LAYERS) -> list[str]:
    from hydrapack.program.layout import module_name

    names = {"q": "q", "k": "k", "v": "v", "o": "o", "g": "gate", "u": "up", "d": "down"}
    return [module_name(i, names[t]) for i in range(layers) for t in targets]


def write_adapter(
    folder: Path,
    seed: int = 0,
    rank: int = 4,
    base: str = "tiny/llama",
    dtype: torch.dtype = torch.float32,
    names: list[str] | None = None,
    shared_seed: int | None = None,
    **config: object,
) -> Path:
    """A PEFT LoRA folder of random weights, as PEFT writes it."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.Generator().manual_seed(seed if shared_seed is None else shared_seed)
    folder.mkdir(parents=True)
    tensors = {}
    for name in names or module_names():
        d_out, d_in = WIDTHS[name.rsplit(".", 1)[1].removesuffix("_proj")]
        a = torch.randn(rank, d_in, generator=start) / d_in**0.5
        a = a + 0.1 * torch.randn(rank, d_in, generator=generator) / d_in**0.5
        b = 0.3 * torch.randn(d_out, rank, generator=generator)
        tensors[f"base_model.model.{name}.lora_A.weight"] = a.to(dtype)
        tensors[f"base_model.model.{name}.lora_B.weight"] = b.to(dtype)
    save_file(tensors, folder / "adapter_model.safetensors")
    targets = sorted({name.rsplit(".", 1)[1] for name in names or module_names()})
    content = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": targets,
        "bias": "none",
        **config,
    }
    (folder / "adapter_config.json").write_text(json.dumps(content))
    return folder


def edit_config(folder: Path, **changes: object) -> Path:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


def edit_tensors(folder: Path, change) -> Path:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    return folder


# Its processes have what commands import, and cost no second for it.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        "hydrapack.base.lower",
        "hydrapack.device.activation",
        "hydrapack.merging.merge",
        "hydrapack.packing.package",
    ]
)

# The longest, begun first, so that no worker is left alone with one of them.
LONGEST = ("runtime", "android", "device", "architectures", "base", "evaluate", "verify", "threads")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {f"test_{name}": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONGEST)))


@pytest.fixture(scope="session", autouse=WORKER)
def one_thread_a_worker():
    """Workers with a thread for each core wait for each other's, and are ten times slower."""
    from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool

    _unsafe_reset_threadpool(1)
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    # Export makes many objects and little garbage: collecting it took a tenth of its time.
    gc.set_threshold(50_000, 20, 20)


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory):
    """(name, make) -> the folder of that name, made by the first process of a run that asks."""
    root = tmp_path_factory.getbasetemp()
    root = root.parent if WORKER else root

    def folder(name, make):
        made, whole = root / name, root / f"{name}.made"
        with FileLock(root / f"{name}.lock"):
            if not whole.exists():
                shutil.rmtree(made, ignore_errors=True)
                made.mkdir()
                make(made)
                whole.touch()
        return made

    return folder


@pytest.fixture
def adapters(tmp_path: Path) -> list[Path]:
    """Three adapters from one initialisation of A."""
    folders = []
    for k in range(3):
        folder = write_adapter(tmp_path / f"task{k}", seed=k + 1, shared_seed=99)
        (folder / "task.json").write_text(json.dumps({"prompt_template": TEMPLATE}))
        folders.append(folder)
    return folders


@pytest.fixture(scope="session")
def tiny_model(once) -> Path:
    """A random two-layer Llama with grouped-query attention and llama3 rope, and a tokenizer."""
    return once("model", lambda folder: write_tiny_model(folder / "tiny")) / "tiny"


@pytest.fixture(scope="session")
def one_layer(once) -> Path:
    """The same with one layer: it is exported in half the time."""
    return once("one-layer", lambda folder: write_tiny_model(folder / "tiny", 1)) / "tiny"


def write_tiny_model(folder: Path, layers: int = LAYERS) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=DIM,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=256,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    special = ["<unk>", "<s>", "</s>", "<|user|>", "<|end|>"]
    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*special, *characters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    tokenizer.save(str(folder / "tokenizer.json"))


TASKS = ("one", "two", "three")


def make_package(folder, adapters, bits=32, **options):
    from hydrapack.adapters.collect import read_adapters
    from hydrapack.merging.uniform import merge_adapters
    from hydrapack.packing.package import pack

    read = read_adapters([str(a) for a in adapters])
    merge_adapters(read, **options).save(folder / "bundle")
    pack(folder / "bundle", folder / "package", bits)
    return folder / "package"


@pytest.fixture(scope="session")
def exported(tiny_model, once):
    """What ``export_base`` takes, of ``base`` or the tiny model -> model.pte, made once a run."""
    from hydrapack.base.export import export_base

    def program(rank, targets=None, base=tiny_model, **options):
        def make(folder):
            export_base(str(base), folder / "model.pte", rank, targets, **options)

        said = (f"{name}={value}" for name, value in options.items())
        name = "-".join((base.parent.name, str(rank), *(targets or ()), *said))
        return once(name, make) / "model.pte"

    return program


@pytest.fixture(scope="session")
def vera_tiny(tiny_model, once):
    """A folder with PEFT's VeRA adapters of the tiny model, three tasks, and what becomes of them.

    ``three-heads`` and ``two-heads`` are bundles, model.pte is the base in float32.
    Rank 7 is odd, and down reads more columns of A than the other targets.
    """
    from peft import VeraConfig, get_peft_model
    from transformers import LlamaForCausalLM

    from hydrapack.adapters.collect import read_adapters
    from hydrapack.base.export import export_base
    from hydrapack.merging.uniform import merge_adapters

    def make(folder):
        targets = ["q_proj", "v_proj", "o_proj", "down_proj"]
        for number, task in enumerate(TASKS):
            config = VeraConfig(r=7, target_modules=targets, task_type="CAUSAL_LM")
            base = LlamaForCausalLM.from_pretrained(tiny_model)
            model = get_peft_model(base, config)
            generator = torch.Generator().manual_seed(number)
            for name, parameter in sorted(model.named_parameters()):
                if "vera_lambda" in name:
                    # PEFT starts with b = 0: an adapter that changes nothing.
                    parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
            model.save_pretrained(folder / task)
            (folder / task / "task.json").write_text(json.dumps({"prompt_template": TEMPLATE}))
        adapters = read_adapters([str(folder / task) for task in TASKS])
        merge_adapters(adapters).save(folder / "three-heads")
        merge_adapters(adapters, heads=2).save(folder / "two-heads")
        export_base(
            str(tiny_model),
            folder / "model.pte",
            bundle=folder / "three-heads",
            quant="fp32",
            max_context=100,
        )

    return once("vera", make)


@pytest.fixture(scope="session")
def tiny(exported, once):
    """(model.pte, package, folder) of the tiny model with three tasks on two heads."""

    def make(folder):
        adapters = []
        for k, task in enumerate(TASKS):
            adapter = write_adapter(folder / task, seed=k + 1, shared_seed=99)
            (adapter / "task.json").write_text(json.dumps({"prompt_template": TEMPLATE}))
            adapters.append(adapter)
        model = exported(4, quant="fp32", max_context=100)
        for name in ("model.pte", "model.pte.json", "tokenizer.json"):
            shutil.copy(model.with_name(name), folder)
        make_package(folder, adapters, heads=2)

    folder = once("tiny", make)
    return folder / "model.pte", folder / "package", folder


@pytest.fixture(scope="session")
def smollm2_program(once):
    """quant -> model.pte of the demo's base at rank 16, exported once for each exporter's source.

    Beside it lie its description and its tokenizer. Skips where HYDRAPACK_OFFLINE is set.
    """
    from hydrapack.demo import job
    from hydrapack.support.progress import silently

    def program(quant: str) -> Path:
        if os.environ.get("HYDRAPACK_OFFLINE"):
            pytest.skip("HYDRAPACK_OFFLINE is set")

        def make(folder):
            # They stay in the demo's cache, whose own program is the GGUF file's.
            chosen = None if quant == "gguf" else quant
            model = job._base_program(16, ("q", "k", "v", "o"), silently, chosen)
            for file in model.parent.iterdir():
                (folder / file.name).symlink_to(file)

        return once(f"smollm2-{quant}", make) / "model.pte"

    return program


@pytest.fixture(scope="session")
def smollm2_package(once):
    """bits -> the package of the demo's five adapters, beside its bundle; packed once a run."""
    from hydrapack.adapters.collect import read_adapters
    from hydrapack.demo.job import example_adapters
    from hydrapack.merging.uniform import merge_adapters
    from hydrapack.packing.package import pack

    def merge(folder):
        merge_adapters(read_adapters(example_adapters())).save(folder / "bundle")

    def package(bits):
        def make(folder):
            (folder / "bundle").symlink_to(once("smollm2-bundle", merge) / "bundle")
            pack(folder / "bundle", folder / "package", bits)

        return once(f"smollm2-{bits}-bit", make) / "package"

    return package


def hydrapack(*arguments: object, input: str | None = None):
    """Run a command in this process: its exit code and what it prints."""
    from typer.testing import CliRunner

    from hydrapack.__main__ import one_line
    from hydrapack.cli.app import app

    done = CliRunner().invoke(app, [*map(str, arguments)], input=input, prog_name="hydrapack")
    code, said = done.exit_code, done.stderr
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        code, said = 2, f"{said}hydrapack: error: {one_line(done.exception)}\n"
    return SimpleNamespace(returncode=code, stdout=done.stdout, stderr=said)


def process(*arguments: object, env: dict[str, str] | None = None, **options):
    """Run the installed command in a process of its own, as a user does."""
    return subprocess.run(
        [sys.executable, "-m", "hydrapack", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, **(env or {})},
        **options,
    )


def greedy(session, ids, count, step=None):
    """The session's choices, end tokens taken as any other; ``step`` prompt tokens a call."""
    session.reset()
    step, tokens = step or len(ids), []
    for start in range(0, len(ids), step):
        logits = session.forward(ids[start : start + step])
    while True:
        tokens.append(int(logits.argmax()))
        if len(tokens) == count:
            return tokens
        logits = session.forward(tokens[-1:])


ROOT = Path(__file__).parents[1]
SITE = Path(sysconfig.get_paths()["purelib"])


def have(*programs):
    return all(shutil.which(program) for program in programs)


def tool(name):
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else name


# PEFT leaves CXX=gcc behind where its extension cannot be built, and gcc links no C++.
ENVIRONMENT = dict(os.environ)


def build(folder, *options, executorch=SITE / "executorch", targets=()):
    """Configure and build the runtime; skip where what it needs is not installed."""
    if not have("c++") or platform.system() != "Linux":
        pytest.skip("the C++ runtime needs Linux and a C++ compiler (g++)")
    configure = [
        tool("cmake"), "-S", ROOT / "runtime", "-B", folder, "-G", "Ninja",
        f"-DCMAKE_MAKE_PROGRAM={shutil.which(tool('ninja'))}",
        f"-Dexecutorch_DIR={executorch / 'share' / 'cmake'}", *options,
    ]  # fmt: skip
    done = subprocess.run(configure, capture_output=True, text=True, env=ENVIRONMENT)
    if done.returncode:
        for name, package in (("nlohmann/json", "nlohmann-json3-dev"), ("GTest", "libgtest-dev")):
            if name in done.stderr:
                pytest.skip(f"the C++ runtime needs {name} ({package} on Debian)")
        raise AssertionError(done.stdout + done.stderr)
    command = [tool("cmake"), "--build", folder, *(["--target", *targets] if targets else [])]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "warning:" not in done.stdout
    return folder


@pytest.fixture(scope="session")
def native(once):
    options = ("-DCMAKE_BUILD_TYPE=Release", "-DHYDRAPACK_TESTS=ON")
    return once("native", lambda folder: build(folder, *options))
