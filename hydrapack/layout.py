"""Which linears are adapted, at which rank, and in which matrices a program takes them.

The base program takes the adapter as two lists of float matrices, each an input of its own, which
it reads where the runtime has them. ``a`` holds every A and ``b`` every B: layer by layer, in each
layer q, k, v, o, gate, up, down, only those the layout names. Matrices lie transposed, so that the
program multiplies them as they are. Modules that read the same input (q, k, v; gate, up) share one
matrix of ``a``, (d_in, modules * rank), for one product; each has its own of ``b``, (rank, d_out).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from hydrapack.errors import InputError

# In packing order. A group shares its input, hence one A product.
GROUPS: tuple[tuple[str, ...], ...] = (("q", "k", "v"), ("o",), ("gate", "up"), ("down",))
ORDER: tuple[str, ...] = tuple(name for group in GROUPS for name in group)
_PARENT = dict.fromkeys(("q", "k", "v", "o"), "self_attn") | dict.fromkeys(
    ("gate", "up", "down"), "mlp"
)

_DECODER_LINEAR = re.compile(
    r"model\.layers\.(?P<layer>0|[1-9]\d{0,3})\."
    r"(?P<parent>self_attn|mlp)\.(?P<target>[a-z]+)_proj"
)


def module_name(layer: int, target: str) -> str:
    """``(3, "q")`` -> ``model.layers.3.self_attn.q_proj``, the name in Hugging Face's models."""
    return f"model.layers.{layer}.{_PARENT[target]}.{target}_proj"


def parse_targets(text: str | Iterable[str]) -> tuple[str, ...]:
    """``"q,k,v,o"`` or ``["q_proj", "k_proj"]`` as target names in packing order.

    Raises:
        InputError: an unknown or empty target.
    """
    parts = text.split(",") if isinstance(text, str) else list(text)
    names = {part.strip().removesuffix("_proj") for part in parts}
    unknown = sorted(names - set(ORDER))
    if unknown or not names:
        raise InputError(
            f"target modules: {', '.join(unknown) or 'none given'}; choose from {', '.join(ORDER)}"
        )
    return tuple(name for name in ORDER if name in names)


@dataclass(frozen=True)
class Layout:
    """Shapes of the adapted linears, equal in all layers.

    ``shapes`` maps each target, in packing order, to (d_out, d_in).
    """

    layers: int
    rank: int
    shapes: tuple[tuple[str, tuple[int, int]], ...]

    @property
    def targets(self) -> tuple[str, ...]:
        """The adapted targets in packing order."""
        return tuple(name for name, _ in self.shapes)

    @property
    def a_shapes(self) -> list[tuple[int, int]]:
        """(d_in, modules * rank) of each matrix of ``a``: layer by layer, group by group."""
        own = dict(self.shapes)
        groups = [(own[group[0]][1], len(group) * self.rank) for group in self.groups()]
        return groups * self.layers

    @property
    def b_shapes(self) -> list[tuple[int, int]]:
        """(rank, d_out) of each matrix of ``b``: layer by layer, target by target."""
        return [(self.rank, d_out) for _, (d_out, _) in self.shapes] * self.layers

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of everything that decides what ``a`` and ``b`` mean to a program."""
        text = json.dumps(
            {
                "packing": 2,
                "layers": self.layers,
                "rank": self.rank,
                "shapes": [[name, *shape] for name, shape in self.shapes],
            },
            sort_keys=True,
        )
        return hashlib.sha256(text.encode()).hexdigest()

    def groups(self) -> list[tuple[str, ...]]:
        """The targets of one layer, grouped by shared input."""
        present = [tuple(n for n in group if n in self.targets) for group in GROUPS]
        return [group for group in present if group]

    def unpack(
        self, a: Sequence[torch.Tensor], b: Sequence[torch.Tensor]
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """(A (rank, d_in), B (d_out, rank)) of each module, in packing order."""
        heads, shared = iter(b), iter(a)
        for _ in range(self.layers):
            for group in self.groups():
                for part in next(shared).T.chunk(len(group)):
                    yield part, next(heads).T

    def modules(self) -> list[str]:
        """Module names in packing order."""
        return [module_name(i, name) for i in range(self.layers) for name in self.targets]

    def missing(self, present: Container[str]) -> dict[str, tuple[int, int]]:
        """(d_out, d_in) of each module that is not ``present``, by name, in packing order."""
        named = {
            module_name(i, target): shape
            for i in range(self.layers)
            for target, shape in self.shapes
        }
        return {name: shape for name, shape in named.items() if name not in present}


def layout_of(
    shapes: Mapping[str, tuple[int, int]], rank: int, layers: int | None = None
) -> Layout:
    """The layout of modules by full name -> (d_out, d_in); single modules may be missing.

    Args:
        layers: of the base model; up to the last one named by default.

    Raises:
        InputError: names that are no decoder linears, or layers of different shape.
    """
    found: dict[str, tuple[int, int]] = {}
    count = 0
    for name in sorted(shapes):
        match = _DECODER_LINEAR.fullmatch(name)
        if match is None or _PARENT.get(match["target"]) != match["parent"]:
            raise InputError(_cannot_hold(name))
        count = max(count, int(match["layer"]) + 1)
        if found.setdefault(match["target"], shapes[name]) != shapes[name]:
            raise InputError(f"target {match['target']} has different shapes in different layers")
    if not found:
        raise InputError(_cannot_hold("none"))
    if layers is not None and layers < count:
        raise InputError(f"layer {count - 1} is adapted, the base program has {layers} layers")
    return Layout(
        layers=layers or count,
        rank=rank,
        shapes=tuple((target, found[target]) for target in ORDER if target in found),
    )


def _cannot_hold(name: str) -> str:
    if name.rsplit(".", 1)[-1] in ("lm_head", "embed_out", "output"):
        return (
            f"{name}: the base program's output layer takes no adapter; merge adapters that were "
            "trained without it in target_modules, or write PEFT adapters with hydrapack unpack"
        )
    return (
        f"modules that a packed adapter cannot hold: {name}; it holds {module_name(0, 'q')} and "
        f"its like ({', '.join(ORDER)}); write PEFT adapters with hydrapack unpack"
    )


def pack_a(layout: Layout, matrices: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
    """A by module name, each (rank, d_in), as the matrices ``a`` of a program."""
    return [
        torch.cat([matrices[module_name(layer, name)] for name in group]).T.contiguous()
        for layer in range(layout.layers)
        for group in layout.groups()
    ]


def pack_b(layout: Layout, matrices: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
    """B by module name, each (d_out, rank), as the matrices ``b`` of a program."""
    return [matrices[name].T.contiguous() for name in layout.modules()]
