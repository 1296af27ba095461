"""Every way to store one module that the planner weighs, with its bytes and squared errors.

A module offers whole heads (M, R) or a common output basis (R, Q), each at several bit widths.
Errors are estimates: the energy left out, which is exact for whole heads and an upper bound for a
common basis, plus the noise of rounding.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from hydrapack.adapters.update import Update, inner_product
from hydrapack.merging.assignment import assign
from hydrapack.merging.method import MergeOptions
from hydrapack.merging.span import Core, core_of
from hydrapack.merging.spectral import basis_within, heads_one_by_one
from hydrapack.merging.two_sided import inputs_of, outputs_of
from hydrapack.program.quantized import (
    SCALE_BYTES,
    core_bits,
    noise_by_columns,
    quantize,
    stored_bytes,
)

FINE = (1, 2, 3, 4, 6, 8, 12, 16)
"""Ranks offered; from there on in steps of an eighth of the largest."""


@dataclass(frozen=True, order=True)
class Choice:
    """What one module gets; ``output_rank`` Q above 0 is a common output basis."""

    bytes: int
    error: float
    """Estimate of the squared error, all tasks together, each with its weight."""
    head_count: int
    rank: int
    output_rank: int
    bits: int
    errors: tuple[float, ...] = ()
    """The same for each task, without its weight."""
    assignment: tuple[int, ...] = ()
    """Each task's head."""


def steps_to(largest: int) -> list[int]:
    """Ranks from 1 to ``largest``: every one that is small, then fewer."""
    coarse = range(FINE[-1], largest + 1, max(1, largest // 8))
    return sorted({r for r in (*FINE, *coarse, largest) if r <= largest})


def _counts(tasks: int) -> list[int]:
    """Numbers of heads offered: every one of few tasks, else as ``steps_to``."""
    return list(range(1, tasks + 1)) if tasks <= FINE[-1] else steps_to(tasks)


@dataclass(frozen=True)
class _Errors:
    """Squared errors of the tasks, and what they weigh."""

    whole: torch.Tensor
    """(N,): squared norms of the updates."""
    weights: torch.Tensor

    def choice(
        self, size: int, lost: torch.Tensor, shape: tuple[int, int, int, int], route: Iterable[int]
    ) -> Choice:
        lost = lost.clamp(min=0)
        error = float((lost * self.weights).sum())
        return Choice(size, error, *shape, tuple(lost.tolist()), tuple(route))


def candidates(
    updates: Sequence[Update], options: MergeOptions, widths: Sequence[int]
) -> list[Choice]:
    """The ways to store one module, sorted by bytes.

    Args:
        options: ``head_count`` N, ``rank`` the largest R, ``seed``, ``weights``.
        widths: bits a value.
    """
    problem = core_of(updates, options.rank)
    weights = torch.tensor([options.weight(k) for k in range(len(updates))], dtype=torch.float64)
    squares = [inner_product(A, B, A, B) for A, B in (u.factors() for u in updates)]
    errors = _Errors(torch.stack(squares), weights)
    found = []
    for head_count in _counts(options.head_count):
        now = replace(options, head_count=head_count)
        assignment = assign([problem], now)
        A = basis_within(problem, updates, assignment, now)
        lost = _lost(A, updates, assignment, now, errors.whole, widths)
        for bits in widths:
            for rank in sorted({min(rank, len(A)) for rank in steps_to(options.rank)}):
                size = stored_bytes(rank, A.shape[1], bits)
                size += stored_bytes(head_count * updates[0].shape[0], rank, bits)
                size += SCALE_BYTES * len(updates) * (head_count < len(updates))
                shape = head_count, rank, 0, bits
                found.append(errors.choice(size, lost[bits][:, rank - 1], shape, assignment))
    return sorted(found + _two_sided(problem, options, widths, errors))


def _lost(
    A: torch.Tensor,
    updates: Sequence[Update],
    assignment: tuple[int, ...],
    options: MergeOptions,
    whole: torch.Tensor,
    widths: Sequence[int],
) -> dict[int, torch.Tensor]:
    """By bits a value, squared errors (N, ranks) of the first 1, 2, ... rows of A.

    One head at a time, so that memory does not grow with N.
    """
    noise_a = {
        bits: (A - quantize(A, bits).dequantize().double()).square().sum(1) for bits in widths
    }
    lost = {bits: whole[:, None].repeat(1, len(A)) for bits in widths}
    for own, B in heads_one_by_one(A, updates, assignment, options):
        # As it is stored before it is rounded.
        B = B.float().double()
        energy = B.square().sum(0)
        noise = {
            bits: (energy * noise_a[bits]).cumsum(0) + rounding
            for bits, rounding in noise_by_columns(B, widths).items()
        }
        for k in own:
            own_a, own_b = updates[k].factors()
            shared = ((own_a @ A.T) * (own_b.T @ B)).sum(0)
            fitted = (energy - 2 * shared).cumsum(0)
            for bits in widths:
                lost[bits][k] += fitted + noise[bits]
    return lost


def _two_sided(
    core: Core, options: MergeOptions, widths: Sequence[int], errors: _Errors
) -> list[Choice]:
    count = len(core.cores)
    weighed = core.cores * errors.weights.sqrt()[:, None, None]
    left, right = outputs_of(weighed, None, 1 << 30), inputs_of(weighed, None, options.rank)
    U, A = core.output @ left, (core.input @ right).T
    cores = left.T @ core.cores @ right
    kept = cores.square().cumsum(1).cumsum(2)
    found = []
    for bits in widths:
        noise_a = (A - quantize(A, bits).dequantize().double()).square().sum(1).cumsum(0)
        noise_u = (U.T - quantize(U.T, bits).dequantize().double()).square().sum(1).cumsum(0)
        for rank in steps_to(len(A)):
            for width in steps_to(U.shape[1]):
                held = kept[:, width - 1, rank - 1]
                # U and A are orthonormal: noise of a basis scales with the energy it carries.
                noise = held * (noise_u[width - 1] / width + noise_a[rank - 1] / rank)
                size = stored_bytes(rank, A.shape[1], bits) + stored_bytes(width, len(U), bits)
                size += stored_bytes(count * rank, width, core_bits(bits))
                lost = errors.whole - held + noise
                found.append(errors.choice(size, lost, (count, rank, width, bits), range(count)))
    return found
