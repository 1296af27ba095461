"""How far a head's next-token distributions are from its own adapter's, on one base program."""

from __future__ import annotations

import torch

from hydrapack.adapters.adapter import Adapter
from hydrapack.adapters.update import LoraModule
from hydrapack.device.session import Session
from hydrapack.program.layout import Layout, pack_a, pack_b
from hydrapack.support.errors import Mismatch

TEXTS = (
    "The meeting was moved to Thursday because two of the engineers was ill.",
    "Can you send me the report before lunch? I want to read it on the train.",
    "Rivers carry sand to the sea, where waves sort it by size.",
    "She said the new phone is faster, but the battery don't last as long.",
)
TOKENS = 8


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


def drift(session: Session, task: str, a: torch.Tensor, b: torch.Tensor) -> float:
    """Mean KL divergence (nats a token) of the head's distributions from those under (a, b).

    Over the tokens the adapter (a, b) greedily answers to each of ``TEXTS`` in the task's prompt.
    """
    total, count = 0.0, 0
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
            total += float((target.exp() * (target - head.log_softmax(-1))).sum())
            count += 1
    return max(total / count, 0.0)
