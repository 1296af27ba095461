"""The C++ runtime from Python: ``hydrapack-run`` with the tokenizer on this side."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydrapack.device.session import Stats
from hydrapack.device.text import load_tokenizer, pieces, stop_ids
from hydrapack.errors import InputError
from hydrapack.pack.manifest import Manifest, ManifestTask, read_package
from hydrapack.prompts import PLACEHOLDER, encode_prompt

PROGRAM = "hydrapack-run"


def find_program() -> str:
    """``$HYDRAPACK_RUN``, else hydrapack-run on the PATH, else the checkout's own build.

    Raises:
        InputError: none of them is there.
    """
    if own := os.environ.get("HYDRAPACK_RUN"):
        return own
    checkout = Path(__file__).parents[2] / "build" / "runtime" / PROGRAM
    found = shutil.which(PROGRAM) or (str(checkout) if checkout.is_file() else None)
    if found is None:
        raise InputError(
            "--engine native: hydrapack-run is not on the PATH; build it (make runtime in a "
            "checkout, runtime/README.md) or name it in HYDRAPACK_RUN"
        )
    return found


class NativeSession:
    """A running hydrapack-run; ``use`` and ``generate`` as of ``Session``."""

    def __init__(
        self, model: str | Path, package: str | Path, tokenizer: str | Path | None = None
    ) -> None:
        """Start the program.

        Raises:
            InputError: no program, malformed files, or what the program refuses.
        """
        self.manifest: Manifest = read_package(Path(package))
        model = Path(model)
        self.tokenizer = load_tokenizer(Path(tokenizer or model.parent / "tokenizer.json"))
        self.stats = Stats()
        self._task: ManifestTask | None = None
        command = [find_program(), str(model), str(package)]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                encoding="utf-8",
            )
        except OSError as error:
            raise InputError(f"{command[0]}: cannot be run: {error.strerror}") from error

    def use(self, task: str | None) -> NativeSession:
        """The task of what follows, or the bare base model.

        Raises:
            InputError: the package has no such task.
        """
        self._task = None if task is None else self.manifest.task(task)
        return self

    def generate(
        self,
        text: str,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        seed: int = 0,
        prompt_template: str | None = None,
    ) -> Iterator[str]:
        """Answer ``text`` piece by piece, from a fresh position; see ``Session.generate``.

        Raises:
            InputError: the prompt does not fit the context, or the program ended.
        """
        task = self._task
        template = prompt_template or (task.prompt_template if task else PLACEHOLDER)
        request: dict[str, Any] = task.generation.model_dump() if task else {}
        request |= {
            "ids": encode_prompt(self.tokenizer, template, text),
            "seed": seed,
            "stop_ids": sorted(stop_ids(self.tokenizer, task)),
            "task": task.name if task else None,
        }
        if max_new_tokens is not None:
            request["max_new_tokens"] = max_new_tokens
        if temperature is not None:
            request["temperature"] = temperature
        return pieces(self.tokenizer, self._tokens(request), task.stop if task else [])

    def _tokens(self, request: dict[str, Any]) -> Iterator[int]:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        try:
            stdin.write(json.dumps(request) + "\n")
            stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None
        while True:
            line = stdout.readline()
            if not line:
                raise self._ended()
            answer = json.loads(line)
            if "error" in answer:
                raise InputError(f"{PROGRAM}: {answer['error']}")
            if "token" not in answer:
                known = {key: answer["stats"][key] for key in vars(self.stats)}
                self.stats.__dict__.update(known)
                return
            yield int(answer["token"])

    def _ended(self) -> InputError:
        stderr = self._process.stderr
        assert stderr is not None
        lines = [line for line in stderr.read().splitlines() if PROGRAM in line]
        return InputError(lines[-1].split("error: ", 1)[-1] if lines else f"{PROGRAM} ended")

    def close(self) -> None:
        """End the program."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
