"""What is found of one way of storing tasks, and of one module."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Point:
    """One way of storing all tasks."""

    method: str
    heads: int
    rank: int
    output_rank: int
    """two-sided's Q; 0 for whole heads."""
    bits: int
    parameters: int
    bytes: int
    s_percent: float
    percent_of_fp16: float
    """Bytes over those of the adapters apart at 16 bits, as PEFT's files hold them."""
    relative_error: float
    """Root mean square of the tasks' relative errors, all modules together."""
    worst_error: float
    """The largest of them."""
    decode_bytes: int
    """A and B at this rank in float32, which the base program reads for each token."""


@dataclass(frozen=True)
class Similarity:
    """Of one module, means over all pairs of adapters; 1 is the same."""

    module: str
    a_mae: float
    """Mean absolute error between two A's over their mean absolute value."""
    b_mae: float
    a_cca: float
    """R^2 of canonical correlation: how much of one A's row space lies in the other's."""
    b_cca: float
    shared_error: float
    """Relative error of all tasks together with one A and a head each."""
