"""How far a head's next-token distributions are from its own adapter's, on one base program."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hydrapack.adapters.adapter import Adapter
from hydrapack.adapters.update import LoraModule
from hydrapack.device.session import Session
from hydrapack.program.layout import Layout, pack_a, pack_b
from hydrapack.support.errors import Invalid, Mismatch

TEXTS = (
    "The meeting was moved to Thursday because two of the engineers was ill.",
    "Can you send me the report before lunch? I want to read it on the train.",
    "Rivers carry sand to the sea, where waves sort it by size.",
    "She said the new phone is faster, but the battery don't last as long.",
)
TOKENS = 8


@dataclass(frozen=True)
class Drift:
    """How far a head's next tokens are from its adapter's."""

    nats: float
    """Mean KL divergence a token of the head's distributions from the adapter's."""
    top1: float
    """Share of tokens at which both prefer the same one."""
    margin_kept: float
    """The adapter's token before the best other one, in logits: the head's sum over the adapter's
    own. 1 is as clear as the adapter; below 0 it prefers other tokens."""


@dataclass(frozen=True)
class DriftLimits:
    """What a head's drift is held to; None is not judged.

    Raises:
        Invalid: a limit that no head could keep, or that none could miss.
    """

    max_drift: float | None = None
    min_top1: float | None = None
    min_margin_kept: float | None = None

    def __post_init__(self) -> None:
        if self.max_drift is not None and not self.max_drift >= 0:
            raise Invalid(f"`max_drift` {self.max_drift}: give nats a token, 0 or more")
        if self.min_top1 is not None and not 0 <= self.min_top1 <= 1:
            raise Invalid(f"`min_top1` {self.min_top1}: give a share of tokens, from 0 to 1")
        if self.min_margin_kept is not None and not self.min_margin_kept <= 1:
            raise Invalid(f"`min_margin_kept` {self.min_margin_kept}: give a share, at most 1")

    @property
    def given(self) -> list[str]:
        """Names of the limits that are judged."""
        return [name for name, value in vars(self).items() if value is not None]

    def broken(self, found: Drift) -> list[str]:
        """A few words for each limit that ``found`` does not keep."""
        broken = []
        if self.max_drift is not None and not found.nats <= self.max_drift:
            broken.append(f"{found.nats:.4f} nats a token, at most {self.max_drift:g}")
        if self.min_top1 is not None and not found.top1 >= self.min_top1:
            broken.append(f"{found.top1:.3f} of the top tokens, at least {self.min_top1:g}")
        if self.min_margin_kept is not None and not found.margin_kept >= self.min_margin_kept:
            broken.append(
                f"{found.margin_kept:.3f} of the margin kept, at least {self.min_margin_kept:g}"
            )
        return broken


def packed_adapter(layout: Layout, adapter: Adapter) -> tuple[torch.Tensor, torch.Tensor]:
    """The adapter itself as the vectors ``a`` and ``b`` of a program with ``layout``.

    Raises:
        Mismatch: a rank above the layout's, or modules it does not have.
    """
    shapes = dict(zip(layout.modules(), [s for _, s in layout.shapes] * layout.layers, strict=True))
    extra = sorted(set(adapter.modules) - set(shapes))
    if extra:
        raise Mismatch(f"{adapter.folder}: adapts {extra[0]}, which the base program does not")
    A, B = {}, {}
    for name, (d_out, d_in) in shapes.items():
        absent = LoraModule(torch.zeros(0, d_in), torch.zeros(d_out, 0))
        own_a, own_b = adapter.modules.get(name, absent).factors()
        missing = layout.rank - len(own_a)
        if missing < 0:
            raise Mismatch(
                f"{adapter.folder}: has rank {len(own_a)}, the base program takes {layout.rank}"
            )
        A[name] = torch.nn.functional.pad(own_a.float(), (0, 0, 0, missing))
        B[name] = torch.nn.functional.pad(own_b.float(), (0, missing))
    return pack_a(layout, A), pack_b(layout, B)


def drift(session: Session, task: str, a: torch.Tensor, b: torch.Tensor) -> Drift:
    """How far the head's next-token distributions are from those under (a, b).

    Over the tokens the adapter (a, b) greedily answers to each of ``TEXTS`` in the task's prompt.
    """
    nats, same, count = 0.0, 0, 0
    own_margin, head_margin = 0.0, 0.0
    for text in TEXTS:
        ids = session.use(task).encode(text)
        session.set_vectors(a, b)
        own, step = [], ids
        answer: list[int] = []
        for _ in range(TOKENS):
            own.append(session.forward(step).log_softmax(-1))
            answer.append(int(own[-1].argmax()))
            step = answer[-1:]
        session.use(task)
        for index, target in enumerate(own):
            head = session.forward(ids if index == 0 else answer[index - 1 : index])
            nats += float((target.exp() * (target - head.log_softmax(-1))).sum())
            same += int(head.argmax()) == answer[index]
            own_margin += margin(target, answer[index])
            head_margin += margin(head, answer[index])
            count += 1
    # An adapter of no margin at all, as one whose tokens are all alike, has none to keep.
    kept = head_margin / own_margin if own_margin else 1.0
    return Drift(max(nats / count, 0.0), same / count, kept)


def margin(logits: torch.Tensor, token: int) -> float:
    """Of ``token`` before the best other one, (V,) logits; below 0 where another is better."""
    others = logits.clone()
    others[token] = -torch.inf
    return float(logits[token] - others.max())
