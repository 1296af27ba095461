"""The base program and the package's program together: heads bound, tokens run.

    forward(tokens, input_pos, rows, on, *A, *B) -> logits (1, K, V)
    shared() -> a        head(route (modules,)) -> b

``hydrapack.program.load.forward_inputs`` has what they are; the package's vectors hold the matrices
(``hydrapack.program.layout``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from hydrapack.packing.manifest import ADAPTERS
from hydrapack.program.layout import a_matrices, b_matrices
from hydrapack.program.load import LoadedProgram, execute, forward_inputs, matrix_shapes
from hydrapack.support.errors import Invalid, Mismatch


class Programs:
    """Loaded, with no head bound."""

    def __init__(self, model: LoadedProgram, adapters: LoadedProgram | None, modules: int) -> None:
        """Args:
        model: the base program.
        adapters: the package's; None for the bare base model alone.
        modules: how many the manifest has, a head chosen for each; 0 without a package.

        Raises:
            HydrapackError: a constant is missing, or the two do not fit each other.
        """
        self.max_context = int(model.constant("get_max_context_len"))
        self.max_seq = int(model.constant("get_max_seq_len"))
        self.max_rows = int(model.constant("get_max_rows"))
        self.vocabulary = int(model.constant("get_vocab_size"))
        self.eos_ids = {int(i) for i in model.constants("get_eos_ids")}
        self._forward = model.method("forward")
        shapes = matrix_shapes(self._forward.metadata)
        if adapters is None:
            self.matrices = [torch.zeros(shape) for shape in shapes]
            self.unbind()
            return
        self._head = adapters.method("head")
        self._shared = self.a = execute(adapters.method("shared"), [], "shared")[0]
        # A head chooses for each module, and each has a matrix of its own in b.
        self._a_shapes, self._b_shapes = shapes[:-modules], shapes[-modules:]
        self.b = torch.zeros(sum(map(math.prod, self._b_shapes)))
        meta = self._head.metadata
        own = tuple(meta.input_tensor_meta(0).sizes()), tuple(meta.output_tensor_meta(0).sizes())
        size = sum(map(math.prod, self._a_shapes))
        if len(shapes) <= modules or own != ((modules,), self.b.shape) or len(self.a) != size:
            raise Mismatch(f"{model.path} and {ADAPTERS} differ in their adapter's size")
        self.bind_vectors(self.a, self.b)
        self.unbind()

    def unbind(self) -> None:
        """Run the bare base model: the program leaves the head's products out."""
        # The matrices must be there all the same; nothing reads them.
        self.on = False

    def bind(self, route: Sequence[int]) -> None:
        """Run under the head of a route.

        Raises:
            RuntimeFailure: the head does not run.
            Mismatch: it has another size than the base program takes.
        """
        b = execute(self._head, [torch.tensor(route)], "head")[0]
        if b.shape != self.b.shape:
            raise Mismatch("the head has another size than the program takes")
        self.bind_vectors(self._shared, b)

    def bind_vectors(self, a: torch.Tensor, b: torch.Tensor) -> None:
        """Run under any packed adapter (``Layout``).

        Raises:
            Invalid: vectors of another size or type than the program takes.
        """
        if a.shape != self.a.shape or b.shape != self.b.shape:
            raise Invalid("the vectors a and b have another size than the program takes")
        if a.dtype != torch.float32 or b.dtype != torch.float32:
            raise Invalid("the vectors a and b must be float32")
        self.a, self.b = a.contiguous(), b.contiguous()
        self.matrices = a_matrices(self.a, self._a_shapes) + b_matrices(self.b, self._b_shapes)
        self.on = True

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
            part = ids[start : start + self.max_seq]
            at = range(position + start, position + start + len(part))
            wanted = range(max(len(part) - rows, 0), len(part))
            inputs = forward_inputs(part, at, wanted, self.on, self.matrices)
            logits = execute(self._forward, inputs, "forward")[0]
        assert logits is not None
        return logits[0]
