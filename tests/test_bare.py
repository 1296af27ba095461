"""The base model alone: no package, its own chat template, any prompt."""

import json
import shutil

import pytest
from conftest import hydrapack

from hydrapack import Session
from hydrapack.base.chat import one_turn
from hydrapack.base.export import export_base
from hydrapack.base.source import Source
from hydrapack.support.errors import Invalid, NotFound

CHAT = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] | trim }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|user|>{% endif %}"
)


@pytest.fixture(scope="module")
def chatty(tiny_model, tmp_path_factory):
    """A program of the tiny model that takes no adapter, and has a chat template."""
    folder = shutil.copytree(tiny_model, tmp_path_factory.mktemp("chatty") / "hf")
    (folder / "chat_template.jinja").write_text(CHAT)
    export_base(folder, folder.parent / "model.pte", quant="fp32", max_context=64)
    return folder.parent / "model.pte"


def test_a_session_without_a_package(tiny):
    with Session(tiny[0]) as bare, Session(tiny[0], tiny[1]) as whole:
        assert bare.tasks == [] and bare.task is None and bare.chat_template is None
        answers = ["".join(s.use(None).generate("hi", 9)) for s in (bare, whole)]
        assert answers[0] == answers[1]
        with pytest.raises(NotFound, match="'one': the session has no package"):
            bare.use("one")
        with pytest.raises(Invalid, match="package"):
            bare.set_vectors(whole._programs.a, whole._programs.b)
    with pytest.raises(Invalid, match="`public_key`"):
        Session(tiny[0], public_key="0" * 64)


def test_chat(chatty, tmp_path):
    """No adapter inputs, no package; the template is the tokenizer's, once rendered."""
    with Session(chatty) as session:
        assert session.chat_template == "<s><|user|>{input}<|end|><|user|>"
        template = session.chat_template
        expected = "".join(session.generate("hi", 9, prompt_template=template))
    run = ("run", "hi", "--model", chatty, "--max-new-tokens", 9)
    for options in (["--chat"], ["--prompt-template", template]):
        done = hydrapack(*run, *options)
        assert (done.returncode, done.stdout) == (0, expected + "\n"), done.stderr
    assert hydrapack(*run).stdout != expected + "\n"


def test_what_run_refuses(chatty, tiny):
    for arguments, words in (
        (["hi", "--model", tiny[0], "--chat"], "--chat: "),
        (["hi", "--model", chatty, "--chat", "--prompt-template", "{input}"], "give one of them"),
        (["hi", "--model", chatty, "--prompt-template", "x"], "exactly once"),
        (["hi", "--model", chatty, "--task", "one"], "no package"),
        ([tiny[1], "--model", tiny[0]], "give the text after it"),
        ([tiny[1], "a", "b", "--model", tiny[0]], "'b': one text too many"),
    ):
        done = hydrapack("run", *arguments)
        assert done.returncode == 2 and words in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"chat_template": "{{ eos_token }}{{ messages[0].content }}"}, "</s>{input}"),
        (
            {"chat_template": [{"name": "default", "template": "<{{ messages[0].content }}>"}]},
            "<{input}>",
        ),
        ({"chat_template": "{{ raise_exception('no') }}{{ messages[0].content }}"}, ""),
        ({"chat_template": "{{ strftime_now('%Y') }}{{ messages[0].content }}"}, ""),
        ({}, ""),
    ],
)
def test_templates_of_folders(tiny_model, tmp_path, content, expected):
    folder = shutil.copytree(tiny_model, tmp_path / "hf")
    (folder / "tokenizer_config.json").write_text(json.dumps(content))
    read = Source(str(folder))
    assert read.chat_template(read.tokenizer()) == expected


def test_a_chat_is_that_of_transformers(tiny_model, tmp_path):
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(tiny_model / "tokenizer.json"), bos_token="<s>", eos_token="</s>"
    )
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(tmp_path)
    turn = [{"role": "user", "content": "{input}"}]
    theirs = AutoTokenizer.from_pretrained(tmp_path).apply_chat_template(
        turn, tokenize=False, add_generation_prompt=True
    )
    data = (tiny_model / "tokenizer.json").read_bytes()
    assert one_turn(CHAT, data, {"bos_token": 1, "eos_token": -1}) == theirs


def test_a_bare_text_begins_as_transformers_has_it(tiny_model, tiny, tmp_path):
    """With BOS where the tokenizer's post-processor says so and no template is asked for."""
    from tokenizers import Tokenizer, processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer.from_file(str(tiny_model / "tokenizer.json"))
    bos = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A $B", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(), bos])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    with Session(*tiny[:2], tmp_path / "tokenizer.json", check_digests=False) as session:
        for text in ("hi", ""):
            # An end after the prompt would be its answer's.
            assert [*session.encode(text), 2] == theirs(text)["input_ids"]
        bare = "".join(session.generate("hi", 9))
        assert bare == "".join(session.generate("hi", 9, prompt_template="<s>{input}"))
        assert bare != "".join(session.generate("hi", 9, prompt_template="{input}"))
        # A template, a task's too, says all of its prompt.
        assert session.use("one").encode("hi")[0] != 1


def test_inspect_names_quantization_and_sizes(chatty, tiny):
    facts = json.loads(hydrapack("inspect", tiny[0], "--json").stdout)
    assert facts["kind"] == "base program" and facts["methods"] == ["forward"]
    assert facts["get_quant"] == "fp32" and facts["get_quant_scheme"]["q"] == "fp32"
    assert facts["get_adapter_rank"] == 4 and len(facts["get_adapter_layout"]) == 64
    assert facts["get_max_context_len"] == 128 and facts["get_base_model"] == "tiny"
    # q, k, v share a matrix of A: 64 x 12, o has 64 x 4; B has 4 rows of 64 + 32 + 32 + 64.
    assert facts["adapter_bytes"] == 4 * 2 * (64 * 16 + 4 * 192)
    assert facts["bytes"] == tiny[0].stat().st_size
    shown = hydrapack("inspect", chatty).stdout
    assert "embed fp32" in shown and "adapter_bytes" in shown


def test_the_load_is_the_files(tiny, monkeypatch):
    """Without the seconds that the runtime's import takes."""
    from hydrapack.device import session
    from hydrapack.program import load

    seconds = [0.0]
    real = load.runtime

    def slow():
        seconds[0] += 100.0
        monkeypatch.setattr(load, "runtime", real)
        return real()

    monkeypatch.setattr(load, "runtime", slow)
    monkeypatch.setattr(session, "runtime", lambda: load.runtime())
    monkeypatch.setattr(session.time, "perf_counter", lambda: seconds[0])
    with Session(tiny[0]) as opened:
        assert seconds == [100.0] and opened.stats.load_ms == 0.0
