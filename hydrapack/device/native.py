"""The C++ runtime from Python: ``hydrapack-run`` with the tokenizer on this side."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
import weakref
from collections import deque
from collections.abc import Generator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from hydrapack.device.answer import Answer, Stats, Turns
from hydrapack.device.asking import Asking
from hydrapack.device.golden import Difference, SelfTest
from hydrapack.device.manifest import find_task, read_device_manifest
from hydrapack.device.options import Options
from hydrapack.device.text import Pieces, load_tokenizer, stop_ids
from hydrapack.program.description import description_path, read_description
from hydrapack.support.errors import (
    HydrapackError,
    Invalid,
    Io,
    Mismatch,
    NotFound,
    RuntimeFailure,
    of_kind,
)

PROGRAM = "hydrapack-run"
SECONDS_TO_END = 5.0


def find_program() -> str:
    """``$HYDRAPACK_RUN``, else hydrapack-run on the PATH, else the checkout's own build.

    Raises:
        NotFound: none of them is there.
    """
    if own := os.environ.get("HYDRAPACK_RUN"):
        return own
    checkout = Path(__file__).parents[2] / "build" / "runtime" / PROGRAM
    found = shutil.which(PROGRAM) or (str(checkout) if checkout.is_file() else None)
    if found is None:
        raise NotFound(
            "hydrapack-run is not on the PATH; build it (make runtime in a "
            "checkout, runtime/README.md) or name it in HYDRAPACK_RUN"
        )
    return found


class NativeSession(Asking):
    """A running hydrapack-run; ``use`` and ``generate`` as of ``Session``.

    The program ends when the session is closed, leaves its ``with`` block, or is dropped.
    """

    def __init__(
        self,
        model: str | Path,
        package: str | Path | None = None,
        tokenizer: str | Path | None = None,
        *,
        check_digests: bool = True,
        public_key: str | None = None,
        self_test: bool = False,
    ) -> None:
        """Start the program; what it refuses of the files is raised by the first answer.

        Args: as of ``Session``.

        Raises:
            HydrapackError: no program, or a manifest or tokenizer that ``Session`` refuses too.
        """
        model = Path(model)
        self.manifest = None
        if package is not None:
            self.manifest, _ = read_device_manifest(Path(package), check_digests)
        self.max_context, digest, self.chat_template = _stated(model, check_digests)
        self.tokenizer = load_tokenizer(Path(tokenizer or model.parent / "tokenizer.json"), digest)
        self.stats = Stats()
        self._turns = Turns(self.stats)
        self._requests = 0
        self._running: int | None = None
        options = [] if check_digests else ["--no-digests"]
        options += [] if public_key is None else ["--public-key", public_key]
        files = [str(model)] + ([] if package is None else [str(package)])
        self._command = [find_program(), *files, *options]
        try:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                encoding="utf-8",
                errors="replace",
            )
        except OSError as error:
            kind = NotFound if isinstance(error, FileNotFoundError) else Io
            raise kind(f"{self._command[0]}: cannot be run: {error.strerror}") from error
        assert self._process.stdin and self._process.stdout and self._process.stderr
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        # Read at once, or the program waits for room in the pipe; the last lines say why it ended.
        self._said: deque[str] = deque(maxlen=20)
        self._listener = threading.Thread(
            target=_keep_lines, args=(self._process.stderr, self._said), daemon=True
        )
        self._listener.start()
        self._end_program = weakref.finalize(self, _end_program, self._process, self._listener)
        if self_test and not (found := self.self_test()).passed:
            self.close()
            raise Mismatch(f"{package}: fails its self-test on this device: {found}")

    def _swap(self, task: str | None) -> None:
        self._turns.end()
        self._task = None
        self._task = find_task(self.manifest, task)

    def _begin(self, ids: Sequence[int], options: Options, lookup: bool) -> Answer:
        if not self._end_program.alive:
            raise Invalid("the session is closed")
        request = options.model_dump(exclude={"stop"}) | {
            "ids": ids,
            "lookup": lookup,
            "stop_ids": sorted(stop_ids(self.tokenizer, options.stop)),
            "task": self.task,
        }
        pieces = Pieces(self.tokenizer, options.stop)
        return self._turns.begin(self._tokens(request), pieces, self._settle)

    def self_test(self) -> SelfTest:
        """As of ``Session``, by a run of the program of its own: this session stays as it is.

        Raises:
            HydrapackError: as of ``Session``.
        """
        if self.manifest is None:
            raise NotFound("the golden outputs are of a package, and the session has none")
        done = subprocess.run([*self._command, "--self-test"], capture_output=True, text=True)
        try:
            found = json.loads((done.stdout.splitlines() or [""])[-1])
        except ValueError:
            last = done.stderr.strip()[-200:]
            raise RuntimeFailure(f"{PROGRAM} ended with {done.returncode}: {last}") from None
        if "error" in found:
            raise of_kind(found["kind"], f"{PROGRAM}: {found['error']}")
        differences = tuple(Difference(**one) for one in found["differences"])
        tasks = tuple(name for name in self.tasks if name in found["tasks"])
        return SelfTest(tasks, found["tokens"], found["near_ties"], differences)

    def close(self) -> None:
        """End the program, and the answer it is making. More than once is fine."""
        self._end_program()

    def _tokens(self, request: dict[str, Any]) -> Generator[int, None, str]:
        """Token ids of the program; returns why no more come."""
        # An answer that was dropped while another thread had the session is not settled yet.
        self._settle()
        self._requests += 1
        self._running = self._requests
        self._send({**request, "id": self._running})
        while True:
            line = self._receive()
            if "token" not in line:
                return str(line["finish"])
            yield int(line["token"])

    def _settle(self) -> None:
        """Have the program end a request that it is still at, and read what is left of it.

        An error of what nobody asks for any more is none; a program that has ended says so to the
        next request.
        """
        if self._running is None or not self._end_program.alive:
            return
        with suppress(HydrapackError):
            self._send({"stop": self._running})
        while self._running is not None:
            with suppress(HydrapackError):
                self._receive()

    def _send(self, line: dict[str, Any]) -> None:
        try:
            self._stdin.write(json.dumps(line) + "\n")
            self._stdin.flush()
        except (OSError, ValueError):
            # It has ended, and may have said why.
            self._receive()
            raise self._ended() from None

    def _receive(self) -> dict[str, Any]:
        """The next line of the running request; the last one ends it.

        Raises:
            HydrapackError: it is an error, of its kind, or the program has ended.
        """
        while True:
            try:
                text = self._stdout.readline()
            except ValueError:  # closed
                text = ""
            if not text:
                raise self._ended()
            if not text.startswith("{"):  # ExecuTorch may print too
                continue
            try:
                line: dict[str, Any] = json.loads(text)
            except ValueError as error:
                raise RuntimeFailure(f"{PROGRAM}: printed no JSON: {text[:80]!r}") from error
            if line.get("id", self._running) != self._running:
                continue
            if "token" not in line:
                self._running = None
            if "error" in line:
                raise of_kind(str(line.get("kind")), f"{PROGRAM}: {line['error']}")
            for key in vars(self.stats).keys() & line.get("stats", {}).keys():
                setattr(self.stats, key, line["stats"][key])
            return line

    def _ended(self) -> Invalid | RuntimeFailure:
        """Why the program is no longer there."""
        self._running = None
        if not self._end_program.alive:
            return Invalid("the session is closed")
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(SECONDS_TO_END)
        self._listener.join(SECONDS_TO_END)
        for line in reversed(self._said):
            if f"{PROGRAM}: error: " in line:
                return Invalid(line.split("error: ", 1)[1])
        code = self._process.returncode
        last = f": {self._said[-1]}" if self._said else ""
        return RuntimeFailure(f"{PROGRAM} ended with exit code {code}{last}")


def _stated(model: Path, check_digests: bool) -> tuple[int | None, str | None, str | None]:
    """Context length, SHA-256 of the tokenizer and chat template by model.pte.json."""
    if not model.is_file():
        raise NotFound(f"{model}: no such file")
    path = description_path(model)
    if not check_digests and not path.exists():
        return None, None, None
    stated = read_description(model)
    context, digest = stated.get("get_max_context_len"), stated.get("get_tokenizer_sha256")
    if check_digests and not isinstance(digest, str):
        raise Invalid(f"{path}: get_tokenizer_sha256: is missing; export the model again")
    chat = stated.get("get_chat_template")
    return (
        context if type(context) is int else None,
        digest if check_digests else None,
        chat if isinstance(chat, str) and chat else None,
    )


def _keep_lines(stream: IO[str], lines: deque[str]) -> None:
    with suppress(ValueError), stream:
        lines.extend(line.rstrip("\n") for line in stream)


def _end_program(process: subprocess.Popen[str], listener: threading.Thread) -> None:
    """No more input: it ends by itself, or is ended."""
    assert process.stdin and process.stdout
    with suppress(OSError):
        process.stdin.close()
    for give_up in (process.terminate, process.kill, lambda: None):
        try:
            process.wait(SECONDS_TO_END / 5)
            break
        except subprocess.TimeoutExpired:
            give_up()
    listener.join(SECONDS_TO_END)
    process.stdout.close()
