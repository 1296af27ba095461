"""The base program and the package's program together: heads bound, tokens run.

    forward(tokens (1, S), input_pos (S,), rows (K,), on (), *a, *b) -> logits (1, K, V)
    shared() -> a        head(route (modules,)) -> b

The head's outputs are the base program's inputs, as they are: nothing is copied but once a swap.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from hydrapack.errors import Invalid, Mismatch
from hydrapack.pack.manifest import ADAPTERS
from hydrapack.pte import FIRST, constant, constants, execute, load_method

Shape = tuple[int, ...]


class Programs:
    """Loaded, with no head bound."""

    def __init__(self, model: Any, adapters: Any, modules: int) -> None:
        """Args:
        model: the base program.
        adapters: the package's.
        modules: how many the manifest has, a head chosen for each.

        Raises:
            InputError: a constant is missing, or the two do not fit each other.
        """
        self.max_context = int(constant(model, "get_max_context_len"))
        self.max_seq = int(constant(model, "get_max_seq_len"))
        self.max_rows = int(constant(model, "get_max_rows"))
        self.vocabulary = int(constant(model, "get_vocab_size"))
        self.eos_ids = {int(i) for i in constants(model, "get_eos_ids")}
        self._forward = load_method(model, "forward")
        self._head = load_method(adapters, "head")
        self._shared = self.a = execute(load_method(adapters, "shared"), [], "shared")
        wanted = _shapes(self._forward, FIRST + 1)
        count = len(self._shared)
        route = [tuple(self._head.metadata.input_tensor_meta(0).sizes())]
        if [tuple(m.shape) for m in self._shared] != wanted[:count] or route != [(modules,)]:
            path: Path = model.hydrapack_path
            raise Mismatch(f"{path} and {ADAPTERS} differ in their adapter's size")
        self._b_shapes = wanted[count:]
        zeros = torch.zeros(max((math.prod(shape) for shape in self._b_shapes), default=0))
        # Inputs must be there, though the bare base model reads none of them.
        self._nothing = [zeros[: math.prod(s)].view(s) for s in self._b_shapes]
        self.unbind()

    def unbind(self) -> None:
        """Run the bare base model: the program leaves the head's products out."""
        self.on, self.a, self.b = torch.tensor(False), self._shared, self._nothing

    def bind(self, route: Sequence[int]) -> None:
        """Run under the head of a route.

        Raises:
            RuntimeFailure: the head does not run.
            Mismatch: it has another size than the base program takes.
        """
        self.bind_matrices(self._shared, execute(self._head, [torch.tensor(route)], "head"))

    def bind_matrices(self, a: Sequence[torch.Tensor], b: Sequence[torch.Tensor]) -> None:
        """Run under any adapter, as ``Layout`` orders its matrices.

        Raises:
            Mismatch: matrices of another size or type than the program takes.
        """
        a_shapes = [tuple(m.shape) for m in self._shared]
        if [tuple(m.shape) for m in a] != a_shapes or [tuple(m.shape) for m in b] != self._b_shapes:
            raise Mismatch("the adapter has another size than the program takes")
        if any(m.dtype != torch.float32 for m in [*a, *b]):
            raise Mismatch("the adapter's matrices must be float32")
        self.a, self.b = [m.contiguous() for m in a], [m.contiguous() for m in b]
        self.on = torch.tensor(True)

    def run(self, ids: Sequence[int], position: int, rows: int = 1) -> torch.Tensor:
        """Append ``ids`` at ``position``; float32 logits (rows, V) after the last ``rows`` of them.

        Args:
            rows: at most ``max_rows``, all within one call.

        Raises:
            Invalid: an id that is not in the vocabulary.
            RuntimeFailure: the program fails.
        """
        if not all(0 <= i < self.vocabulary for i in ids):
            raise Invalid(f"a token is not in the vocabulary of {self.vocabulary}")
        logits = None
        for start in range(0, len(ids), self.max_seq):
            part = list(ids[start : start + self.max_seq])
            at = torch.arange(position + start, position + start + len(part))
            wanted = torch.arange(max(len(part) - rows, 0), len(part))
            inputs = [torch.tensor([part]), at, wanted, self.on, *self.a, *self.b]
            logits = execute(self._forward, inputs, "forward")[0]
        assert logits is not None
        return logits[0]


def _shapes(method: Any, first: int) -> list[Shape]:
    meta = method.metadata
    return [tuple(meta.input_tensor_meta(i).sizes()) for i in range(first, meta.num_inputs())]
