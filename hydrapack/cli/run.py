"""``hydrapack run``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hydrapack.cli.terminal import print_json
from hydrapack.support.errors import Invalid

if TYPE_CHECKING:
    from hydrapack.device.golden import SelfTest


def run(
    given: Annotated[
        list[str],
        typer.Argument(
            metavar="[PACKAGE_DIR] TEXT",
            help="What pack wrote (none: the bare base model); the input, - for standard input.",
        ),
    ],
    model: Annotated[Path, typer.Option(help="What export-base wrote.")],
    task: Annotated[
        str | None, typer.Option(help="A task of the package; without it, the bare base model.")
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Prompt by the chat template of the base's tokenizer.")
    ] = False,
    prompt_template: Annotated[
        str | None, typer.Option(help="Text around {input}, in place of the task's own.")
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="tokenizer.json; the one beside the model by default.")
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Most tokens of an answer; the task's own by default."),
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0, help="0 is greedy; the task's own by default.")
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(min=0, help="Sample from this many tokens, 0 for all; the task's by default."),
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(help="Sample from this share of the probability; the task's by default."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the sampling.")] = 0,
    lookup: Annotated[
        bool,
        typer.Option(
            "--lookup",
            help="Guess several tokens at once from the text so far; faster where it repeats.",
        ),
    ] = False,
    engine: Annotated[
        str, typer.Option(help="python, or native: the C++ runtime, hydrapack-run.")
    ] = "python",
    no_digests: Annotated[
        bool, typer.Option("--no-digests", help="Do not check the files' SHA-256.")
    ] = False,
    public_key: Annotated[
        Path | None,
        typer.Option(help="Ed25519 public key (PEM) that must have signed PACKAGE_DIR."),
    ] = None,
    self_test: Annotated[
        bool,
        typer.Option(
            "--self-test",
            help="No TEXT: replay the golden outputs of PACKAGE_DIR and say which tasks pass.",
        ),
    ] = False,
    stats: Annotated[
        bool, typer.Option("--stats", help="Print swap, prefill and decode times, and the finish.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print text, finish and times as JSON.")
    ] = False,
) -> None:
    """Generate on the ExecuTorch runtime with a task's head.

    Without a task and a template, the text alone, after BOS where the tokenizer begins with it.

    Exit code 0, 1 if --self-test finds another token, 2 for unusable input.

    Examples:

        hydrapack run package "He go to school." --model model.pte --task grammar --stats

        hydrapack run "Why is the sky blue?" --model model.pte --chat

        cat mail.txt | hydrapack run package - --model model.pte --task summary

        hydrapack run package --model model.pte --self-test
    """
    import hydrapack as hp
    from hydrapack.device.native import NativeSession
    from hydrapack.packing.signature import read_public_key

    if engine not in ("python", "native"):
        raise Invalid(f"--engine {engine}: choose python or native")
    if chat and prompt_template is not None:
        raise Invalid("--chat and --prompt-template: give one of them")
    if self_test and (len(given) > 1 or task is not None):
        raise Invalid("--self-test: the prompts are the package's own; give PACKAGE_DIR alone")
    package, text = (Path(given[0]), "") if self_test else _package_and_text(given)
    start = hp.Session if engine == "python" else NativeSession
    key = None if public_key is None else read_public_key(public_key)
    session = start(model, package, tokenizer, check_digests=not no_digests, public_key=key)
    if self_test:
        _report(session.self_test(), as_json)
        return
    source = sys.stdin.read() if text == "-" else text
    if chat and (prompt_template := session.chat_template) is None:
        raise Invalid(f"--chat: {model} holds no chat template; give --prompt-template")
    answer = session.use(task).generate(
        source,
        max_new_tokens,
        temperature,
        seed,
        prompt_template,
        top_k=top_k,
        top_p=top_p,
        lookup=lookup,
    )
    if as_json:
        whole = "".join(answer)
        print_json(
            {"finish": answer.finish, "stats": vars(session.stats), "task": task, "text": whole}
        )
        return
    for piece in answer:
        print(piece, end="", flush=True)
    print()
    if stats:
        s = session.stats
        print(
            f"load {s.load_ms:.0f} ms, swap {s.swap_ms:.2f} ms, prefill {s.prefill_tokens} tokens "
            f"at {s.prefill_rate:.0f}/s, decode {s.decode_tokens} tokens at {s.decode_rate:.0f}/s, "
            f"finish {answer.finish}",
            file=sys.stderr,
        )


def _report(found: SelfTest, as_json: bool) -> None:
    if as_json:
        print_json(found.as_json())
    else:
        for task in found.tasks:
            prompts = sorted({one.prompt for one in found.differences if one.task == task})
            said = f"FAIL, prompts {', '.join(map(str, prompts))}" if prompts else "pass"
            print(f"{task}: {said}")
        print(found)
    if not found.passed:
        raise typer.Exit(1)


def _package_and_text(given: list[str]) -> tuple[Path | None, str]:
    if len(given) > 2:
        raise Invalid(f"{given[2]!r}: one text too many; put the text between quotes")
    if len(given) == 2:
        return Path(given[0]), given[1]
    if (Path(given[0]) / "manifest.json").is_file():
        raise Invalid(f"{given[0]}: is a package; give the text after it")
    return None, given[0]
