"""ExecuTorch programs through ExecuTorch's Python runtime; its bare errors become clear ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydrapack.support.errors import Invalid, NotFound, RuntimeFailure, reading
from hydrapack.support.extras import need

_MAGIC = slice(4, 6)
FORWARD_VERSION = 1
"""Which inputs ``forward`` takes, a constant of the program: one without it takes others."""
_MATRICES = 4


@dataclass(frozen=True)
class LoadedProgram:
    """A .pte on the runtime, and the file it came from."""

    path: Path
    program: Any
    """ExecuTorch's own object."""

    @property
    def method_names(self) -> set[str]:
        """Of methods and constants."""
        return set(self.program.method_names)

    def method(self, name: str) -> Any:
        """A method, ready to run.

        Raises:
            HydrapackError: it cannot be loaded.
        """
        try:
            return self.program.load_method(name)
        except Exception as error:  # the binding raises bare RuntimeErrors
            raise Invalid(f"{self.path}: damaged: {name!r} cannot be loaded") from error

    def constants(self, name: str) -> list[Any]:
        """The values of a constant method.

        Raises:
            HydrapackError: the program does not have it.
        """
        if name not in self.method_names:
            raise Invalid(f"{self.path}: has no method {name!r}; export it with hydrapack")
        return execute(self.method(name), [], f"{self.path}: {name}")

    def constant(self, name: str) -> Any:
        """The value of a constant method of one value.

        Raises:
            HydrapackError: the program does not have it.
        """
        return self.constants(name)[0]


def runtime() -> Any:
    """ExecuTorch's runtime; its first import takes seconds.

    Raises:
        Invalid: it is not installed.
    """
    need("executorch", "device")
    # Registers the quantized kernels with the runtime.
    import executorch.kernels.quantized  # noqa: F401
    from executorch.runtime import Runtime

    return Runtime.get()


def load_program(path: Path, method: str | None = None) -> LoadedProgram:
    """The program at ``path``.

    Args:
        method: one it must have.

    Raises:
        HydrapackError: no such file, not a program, or without ``method``.
    """
    if not path.is_file():
        raise NotFound(f"{path}: no such file")
    with reading(path), path.open("rb") as file:
        magic = file.read(8)[_MAGIC]
    if magic != b"ET":
        raise Invalid(f"{path}: not an ExecuTorch program, or a damaged one")
    loader = runtime()
    try:
        program = loader.load_program(path)
        names = program.method_names
    except Exception as error:  # the binding raises bare RuntimeErrors
        raise Invalid(f"{path}: not an ExecuTorch program, or a damaged one") from error
    if method is not None and method not in names:
        raise Invalid(f"{path}: has no method {method!r}; is it a .pte of hydrapack?")
    return LoadedProgram(path, program)


def forward_inputs(
    tokens: Sequence[int],
    positions: Sequence[int],
    rows: Sequence[int],
    on: bool,
    matrices: Sequence[Any],
) -> list[Any]:
    """The inputs of ``forward``, in its order.

    Args:
        tokens: the S of the call.
        positions: theirs.
        rows: which of the S tokens' logits are wanted, from 0.
        on: whether the adapter counts.
        matrices: of the adapter, all of A and then all of B, of ``matrix_shapes``; none for a
            program that takes no adapter.
    """
    import torch

    # An integer, since ExecuTorch's Java API makes no tensor of truth values.
    switch = [torch.tensor(int(on))] if matrices else []
    text = [torch.tensor([list(tokens)]), torch.tensor(list(positions)), torch.tensor(list(rows))]
    return [*text, *switch, *matrices]


def matrix_shapes(meta: Any) -> list[tuple[int, ...]]:
    """Of the matrices among ``forward``'s inputs, by its metadata; none if it takes no adapter."""
    return [tuple(meta.input_tensor_meta(i).sizes()) for i in range(_MATRICES, meta.num_inputs())]


def check_forward(program: LoadedProgram) -> None:
    """Refuse a base program whose ``forward`` takes other inputs than ``forward_inputs``.

    Raises:
        Invalid: another version of hydrapack exported it.
    """
    method = "get_forward_version"
    if method in program.method_names and program.constant(method) == FORWARD_VERSION:
        return
    raise Invalid(
        f"{program.path}: its forward takes other inputs than this version of hydrapack "
        "gives; export it again with hydrapack export-base"
    )


def execute(method: Any, inputs: Sequence[Any], name: str) -> list[Any]:
    """The outputs of a loaded method; ``name`` says which it is.

    torch's threads stand still: ExecuTorch has its own, and attention, whose small products are
    torch's here, gives other last bits on several and takes a third of a token's time longer.

    Raises:
        RuntimeFailure: it fails while it runs.
    """
    from hydrapack.support.threads import one_thread

    try:
        with one_thread():
            return list(method.execute(inputs))
    except Exception as error:  # the binding raises bare RuntimeErrors
        raise RuntimeFailure(f"{name} failed on the ExecuTorch runtime: {error}") from error
