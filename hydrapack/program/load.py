"""ExecuTorch programs through ExecuTorch's Python runtime; its bare errors become clear ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydrapack.support.errors import Invalid, NotFound, RuntimeFailure, unreadable

_MAGIC = slice(4, 6)
FIRST = 3
"""Inputs of ``forward`` before the adapter's: tokens, positions, rows."""


def load_program(path: Path, method: str | None = None) -> Any:
    """The program at ``path``.

    Args:
        method: one it must have.

    Raises:
        InputError: no such file, not a program, or without ``method``.
    """
    if not path.is_file():
        raise NotFound(f"{path}: no such file")
    try:
        with path.open("rb") as file:
            magic = file.read(8)[_MAGIC]
    except OSError as error:
        raise unreadable(path, error) from error
    if magic != b"ET":
        raise Invalid(f"{path}: not an ExecuTorch program, or a damaged one")
    # Registers the quantized kernels with the runtime.
    import executorch.kernels.quantized  # noqa: F401
    from executorch.runtime import Runtime

    try:
        program = Runtime.get().load_program(path)
        names = program.method_names
    except Exception as error:  # the binding raises bare RuntimeErrors
        raise Invalid(f"{path}: not an ExecuTorch program, or a damaged one") from error
    if method is not None and method not in names:
        raise Invalid(f"{path}: has no method {method!r}; is it a .pte of hydrapack?")
    program.hydrapack_path = path
    return program


def load_method(program: Any, method: str) -> Any:
    """A method of a loaded program.

    Raises:
        InputError: it cannot be loaded.
    """
    try:
        return program.load_method(method)
    except Exception as error:  # the binding raises bare RuntimeErrors
        raise Invalid(f"{program.hydrapack_path}: damaged: {method!r} cannot be loaded") from error


def no_adapter(forward: Any) -> list[Any]:
    """What ``forward`` takes after tokens, positions and rows, for the bare base model."""
    import torch

    count = forward.metadata.num_inputs()
    if count <= FIRST:
        return []
    shapes = [forward.metadata.input_tensor_meta(i).sizes() for i in range(FIRST + 1, count)]
    return [torch.tensor(False), *(torch.zeros(*shape) for shape in shapes)]


def execute(method: Any, inputs: Sequence[Any], name: str) -> list[Any]:
    """The outputs of a loaded method; ``name`` says which it is.

    Raises:
        RuntimeFailure: it fails while it runs.
    """
    try:
        return list(method.execute(inputs))
    except Exception as error:  # the binding raises bare RuntimeErrors
        raise RuntimeFailure(f"{name} failed on the ExecuTorch runtime: {error}") from error


def constants(program: Any, method: str) -> list[Any]:
    """The values of a constant method.

    Raises:
        InputError: the program does not have it.
    """
    if method not in program.method_names:
        raise Invalid(
            f"{program.hydrapack_path}: has no method {method!r}; export it with hydrapack"
        )
    return execute(load_method(program, method), [], f"{program.hydrapack_path}: {method}")


def constant(program: Any, method: str) -> Any:
    """The value of a constant method of one value.

    Raises:
        InputError: the program does not have it.
    """
    return constants(program, method)[0]
