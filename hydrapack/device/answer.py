"""An answer while it is made: pieces of text, and how it ended."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from hydrapack.device.text import Pieces
from hydrapack.support.errors import Busy, HydrapackError, Invalid


@dataclass
class Stats:
    """Times of the last swap and generation, in ms, token counts, and how it ended."""

    load_ms: float = 0.0
    swap_ms: float = 0.0
    prefill_ms: float = 0.0
    prefill_tokens: int = 0
    decode_ms: float = 0.0
    decode_tokens: int = 0
    decode_calls: int = 0
    """Of the program; fewer than tokens with ``lookup``."""
    finish: str = ""
    """stop, length, context or stopped; empty until the first answer has ended."""

    @property
    def prefill_rate(self) -> float:
        """Tokens a second."""
        return 1000 * self.prefill_tokens / self.prefill_ms if self.prefill_ms else 0.0

    @property
    def decode_rate(self) -> float:
        """Tokens a second."""
        return 1000 * self.decode_tokens / self.decode_ms if self.decode_ms else 0.0


class Turns:
    """One thread at a time, and one answer: a later call ends an earlier one's answer."""

    def __init__(self, stats: Stats) -> None:
        """``stats``: of the session; gets the finish of each answer."""
        self._stats = stats
        self._lock = threading.Lock()
        self._closed = False
        # Not the answer itself: one that nobody keeps is to end.
        self._answer: weakref.ref[Answer] | None = None

    @contextmanager
    def hold(self) -> Iterator[None]:
        """The session is this thread's.

        Raises:
            Busy: it is another's.
            Invalid: it is closed.
        """
        if not self._lock.acquire(blocking=False):
            raise Busy("the session is in use by another thread")
        try:
            if self._closed:
                raise Invalid("the session is closed")
            yield
        finally:
            self._lock.release()

    def end(self) -> None:
        """End the answer of an earlier call, if one is being made. For who holds the session."""
        answer = self._answer() if self._answer else None
        self._answer = None
        if answer is not None:
            answer.end("stopped")

    def close(self) -> None:
        """End the answer being made; nothing can be asked for any more. For who holds it."""
        self.end()
        self._closed = True

    def begin(
        self,
        tokens: Generator[int, None, str],
        pieces: Pieces,
        settle: Callable[[], None] = lambda: None,
    ) -> Answer:
        """The next answer; ends the one before. For who holds the session.

        Args:
            tokens: ids as they are made; returns why no more come.
            pieces: their text.
            settle: called once no more are asked for.
        """
        self.end()
        answer = Answer(tokens, pieces, self, settle)
        self._answer = weakref.ref(answer)
        self._stats.finish = ""
        return answer

    def ended(self, finish: str) -> None:
        """Note how the answer being made has ended."""
        self._stats.finish = finish


class Answer(Iterator[str]):
    """Pieces of text as the model makes them; nothing runs until they are asked for.

    A later call on its session ends it, and so does closing or dropping it.
    """

    def __init__(
        self,
        tokens: Generator[int, None, str],
        pieces: Pieces,
        turns: Turns,
        settle: Callable[[], None],
    ) -> None:
        """See ``Turns.begin``."""
        self._tokens, self._pieces, self._turns, self._settle = tokens, pieces, turns, settle
        self.ids: list[int] = []
        """Tokens so far; an end token is not among them."""
        self.finish = ""
        """Empty while it is made, then ``stop`` (an end token or stop string), ``length``,
        ``context`` (full) or ``stopped`` (closed, ended by a later call, or failed)."""

    def __next__(self) -> str:
        if self.finish:
            raise StopIteration
        with self._turns.hold():
            while not self.finish:
                if piece := self._piece():
                    return piece
        raise StopIteration

    def _piece(self) -> str:
        """The text that one more token makes certain."""
        try:
            token = next(self._tokens)
        except StopIteration as last:
            self.end(last.value)
            return self._pieces.rest()
        except BaseException:
            self.end("stopped")
            raise
        self.ids.append(token)
        piece = self._pieces.push(token)
        if self._pieces.stopped:
            self.end("stop")
        return piece

    def end(self, finish: str) -> None:
        """No more comes; the first reason stands. For who holds the session."""
        if not self.finish:
            self.finish = finish
            self._tokens.close()
            try:
                self._settle()
            finally:
                self._turns.ended(finish)

    def close(self) -> None:
        """End it.

        Raises:
            Busy: another thread is in the session.
        """
        if not self.finish:
            with self._turns.hold():
                self.end("stopped")

    def __del__(self) -> None:
        # Where the session is busy, the call that has it ends this answer.
        with suppress(HydrapackError):
            self.close()
