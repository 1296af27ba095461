"""HydraOpt as published: Eq. (1) and (2) of https://arxiv.org/abs/2507.17706 by AdamW.

Minimises sum_k d(dW_k, sum_m softmax(c_k / t)_m B_m A) over a shared A, M heads B_m and, for M < N,
coefficients c_k that start Gaussian and are dropped in the end for the largest. The temperature t
falls geometrically; for the last fifth of the steps every task has its one head.

d is mae (mean absolute error), fro (squared Frobenius norm, whose optimum the spectral method has
in closed form), mse (its mean, which differs from fro only where modules of several sizes share
coefficients) or cs (1 - cosine).

The loss is shown relative: 1 is the distance of an adapter left out. Learning rates are relative
too, to the root mean square of what they move, so that one default fits every scale of adapter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch

from hydrapack.adapters.update import Update, VeraModule, inner_product
from hydrapack.bundle.merged import Merged, MergedVera, merged_like
from hydrapack.merging.method import MergeOptions, Method, Shared, choose
from hydrapack.merging.spectral import merge_spectral, one_route
from hydrapack.merging.vera import merge_vera
from hydrapack.support.errors import Invalid

DISTANCES = ("mae", "fro", "mse", "cs")
INITS = ("adapters", "spectral", "random")
ANNEALED = 0.05
"""Share of the temperature left at the end."""
SOFT = 0.8
"""Share of the steps with coefficients."""
PATIENCE, PLATEAU = 40, 1e-4


@dataclass(frozen=True)
class HydraOpt(Shared):
    """hydraopt's own."""

    distance: str = "mae"
    """d: mae, fro, mse or cs."""
    steps: int = 200
    """AdamW's, at most."""
    lr: float = 0.05
    """Learning rate, relative to the root mean square of what is trained."""
    temperature: float = 1.0
    """Of the softmax over heads at the start; it falls to a twentieth."""
    init: str = "adapters"
    """The start: adapters, spectral or random."""

    def __post_init__(self) -> None:
        super().__post_init__()
        choose("distance", self.distance, DISTANCES)
        choose("init", self.init, INITS)
        for name, value in (
            ("steps", self.steps),
            ("lr", self.lr),
            ("temperature", self.temperature),
        ):
            if not (math.isfinite(value) and value > 0):
                raise Invalid(f"`{name}` {value:g}: must be above 0")

    @property
    def measure(self) -> str:
        """The distance in which the relative objective takes a task's size."""
        return self.distance


class _MeanAbsolute(torch.autograd.Function):
    """Mean of |head @ shared - B @ A|, with gradients for head and shared.

    Autograd would keep three more products of d_out x d_in and multiply by B and A in vain: this
    takes half the time.
    """

    @staticmethod
    def forward(
        ctx: Any, head: torch.Tensor, shared: torch.Tensor, B: torch.Tensor, A: torch.Tensor
    ) -> torch.Tensor:
        difference = (head @ shared).addmm_(B, A, alpha=-1)
        sign = difference.sign()
        # Faster than abs and sum, and nothing is lost: the factors are -1, 0 and 1.
        loss = torch.dot(difference.flatten(), sign.flatten()) / sign.numel()
        ctx.save_for_backward(sign @ shared.T, head.T @ sign)
        ctx.values = sign.numel()
        return loss

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        scale = gradients[0] / ctx.values
        of_head, of_shared = ctx.saved_tensors
        return of_head * scale, of_shared * scale, None, None


class _Module:
    """One module's targets and what is trained for it, on the device."""

    def __init__(self, updates: Sequence[Update], options: MergeOptions, own: HydraOpt) -> None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        # Gram matrices cancel where the fit is good; full products do not.
        dtype = torch.float32 if own.distance == "mae" else torch.float64
        factors = [u.factors() for u in updates]
        self.targets = [(A.to(device, dtype), B.to(device, dtype)) for A, B in factors]
        self.expand = updates[0].expand
        shared, heads = _start(updates, options, own)
        self.shared = shared.to(device, dtype).requires_grad_()
        self.heads = heads.to(device, dtype).requires_grad_()
        self.squares = [float(inner_product(A, B, A, B)) for A, B in self.targets]
        self.values = updates[0].shape[0] * updates[0].shape[1]
        with torch.no_grad():
            self.whole = sum(
                options.weight(k) * self._size(k, own.distance) for k in range(len(updates))
            )

    def groups(self, rate: float) -> list[dict[str, object]]:
        """AdamW's parameter groups."""
        return [
            {"params": [p], "lr": rate * float(p.detach().square().mean().sqrt())}
            for p in (self.shared, self.heads)
        ]

    def _size(self, k: int, distance: str) -> float:
        if distance == "mae":
            A, B = self.targets[k]
            return float((B @ A).abs().mean())
        return {"fro": self.squares[k], "mse": self.squares[k] / self.values}.get(
            distance, float(self.squares[k] > 0)
        )

    def distance(self, k: int, head: torch.Tensor, kind: str) -> torch.Tensor:
        """Of task k's update from its head's; only mae forms the d_out x d_in product."""
        A, B = self.targets[k]
        shared, head = self.expand(self.shared, head)
        if kind == "mae":
            apply = cast(Callable[..., torch.Tensor], _MeanAbsolute.apply)
            return apply(head, shared, B, A)
        norm = inner_product(shared, head, shared, head)
        cross = inner_product(A, B, shared, head)
        if kind == "cs":
            if not self.squares[k]:
                return norm * 0
            return 1 - cross / (norm * self.squares[k]).clamp(min=1e-300).sqrt()
        square = (self.squares[k] - 2 * cross + norm).clamp(min=0)
        return square if kind == "fro" else square / self.values


def merge_hydraopt(
    updates: Sequence[Update], options: MergeOptions, own: HydraOpt | None = None
) -> Merged:
    """Train A and the heads of one module."""
    own = own or HydraOpt()
    if options.assignment is None and own.init == "spectral":
        options = replace(options, assignment=_spectral(updates, options).assignment)
    (module,), assignment = _train([updates], options, own)
    shared, heads = module.shared.detach().cpu(), module.heads.detach().cpu()
    return merged_like(updates[0], shared, heads, assignment)


def assign_hydraopt(
    modules: Iterable[Sequence[Update]], options: MergeOptions, own: HydraOpt | None = None
) -> tuple[int, ...]:
    """One head a task for all modules, by Eq. (1) with coefficients that all modules share."""
    own = own or HydraOpt()
    if own.init == "spectral":
        return one_route(modules, options)
    return _train(list(modules), options, own)[1]


def _train(
    modules: Sequence[Sequence[Update]], options: MergeOptions, own: HydraOpt
) -> tuple[list[_Module], tuple[int, ...]]:
    count, heads = len(modules[0]), options.head_count
    trained = [_Module(updates, options, own) for updates in modules]
    whole = sum(module.whole for module in trained) or 1.0
    generator = torch.Generator().manual_seed(options.seed)
    coefficients = (
        torch.randn(count, heads, generator=generator).to(trained[0].shared).requires_grad_()
    )
    assignment = options.assignment or (tuple(range(count)) if heads == count else None)
    groups = [group for module in trained for group in module.groups(own.lr)]
    if assignment is None:
        # Coefficients are of size 1 and must be able to turn round within the run.
        groups.append({"params": [coefficients], "lr": 10 * own.lr})
    optimizer = torch.optim.AdamW(groups, eps=1e-15)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, own.steps)
    best, kept, stale = float("inf"), _copy(trained), 0
    for step in range(own.steps + 1):
        if assignment is None and step >= SOFT * own.steps:
            assignment = tuple(coefficients.argmax(1).tolist())
        temperature = own.temperature * ANNEALED ** (step / (SOFT * own.steps))
        if assignment is None:
            mixture = torch.softmax(coefficients / temperature, 1)
        else:
            mixture = torch.eye(heads, device=coefficients.device)[list(assignment)]
        optimizer.zero_grad()
        loss = _backward(trained, mixture.to(coefficients.dtype), options, whole, own.distance)
        options.report(step / own.steps, loss)
        if assignment is not None:
            stale = 0 if loss < best * (1 - PLATEAU) else stale + 1
            if loss < best:
                best, kept = loss, _copy(trained)
            if stale > PATIENCE:
                break
        if step < own.steps:
            optimizer.step()
            schedule.step()
    for module, (A, B) in zip(trained, kept, strict=True):
        module.shared.data, module.heads.data = A, B
    return trained, assignment or tuple(coefficients.argmax(1).tolist())


def _backward(
    modules: Sequence[_Module],
    mixture: torch.Tensor,
    options: MergeOptions,
    whole: float,
    distance: str,
) -> float:
    """The relative loss; gradients are added up a module and a task at a time."""
    total = 0.0
    leaf = mixture.detach().requires_grad_()
    for module in modules:
        for k in range(len(module.targets)):
            head = torch.tensordot(leaf[k], module.heads, 1)
            loss = module.distance(k, head, distance) * (options.weight(k) / whole)
            torch.autograd.backward(loss)
            total += float(loss.detach())
    if mixture.requires_grad and leaf.grad is not None:
        torch.autograd.backward(mixture, leaf.grad)
    return total


def _copy(modules: Sequence[_Module]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(m.shared.detach().clone(), m.heads.detach().clone()) for m in modules]


def _spectral(updates: Sequence[Update], options: MergeOptions) -> Merged:
    vera = [u for u in updates if isinstance(u, VeraModule)]
    options = replace(options, weights=None)
    return merge_vera(vera, options) if vera else merge_spectral(updates, options)


def _start(
    updates: Sequence[Update], options: MergeOptions, own: HydraOpt
) -> tuple[torch.Tensor, torch.Tensor]:
    """A (R, d_in) and heads (M, d_out, R), or VeRA's d and b, to start from; float64."""
    if own.init == "spectral":
        merged = _spectral(updates, options)
        shared = merged.d if isinstance(merged, MergedVera) else merged.A
        return shared.double(), merged.heads.double()
    each = [(u.trained[0].double(), u.trained[1].double() * u.scaling) for u in updates]
    present = [pair for pair, u in zip(each, updates, strict=True) if u.rank]
    generator = torch.Generator().manual_seed(options.seed)
    size_a, size_b = (
        float(torch.stack([t.square().mean() for t in part]).mean().sqrt())
        for part in zip(*present, strict=True)
    )
    first, head = present[0]
    shape_a = (options.rank, *first.shape[1:])
    shape_b = (options.head_count, head.shape[0], *([options.rank] if head.dim() == 2 else []))
    A = size_a * torch.randn(shape_a, generator=generator, dtype=torch.float64)
    heads = 0.1 * size_b * torch.randn(shape_b, generator=generator, dtype=torch.float64)
    if own.init == "adapters":
        A[: len(first)] = first[: options.rank]
        for mine, (_, other) in zip(heads, each, strict=False):
            if other.dim() == 1:
                mine.copy_(other)
                continue
            common = min(options.rank, other.shape[1])
            mine[:, :common] = other[:, :common]
            mine[:, common:] = 0
    return A, heads


HYDRAOPT = Method(
    name="hydraopt",
    paper="https://arxiv.org/abs/2507.17706",
    merge=merge_hydraopt,
    vera=merge_hydraopt,
    knobs=HydraOpt,
    shares=True,
    objectives=("absolute", "relative"),
    route=assign_hydraopt,
)
