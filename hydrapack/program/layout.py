"""Which linears are adapted, at which rank, and where each one lies in the packed vectors.

A package gives the adapter as two flat float vectors. ``a`` holds every A and ``b`` every B: layer
by layer, in each layer q, k, v, o, gate, up, down, only those the layout names. Adapters of fused
linears have qkv in place of q, k, v, and gate_up in place of gate, up. Matrices lie transposed, so
that the base program multiplies them as they are. Modules that read the same input (q, k, v; gate,
up) share one matrix in ``a``, (d_in, modules * rank), for one product. ``b`` is one matrix (rank,
sum of all d_out): a column for each output row of each module, so that scales by output row
dequantize a whole head in one product.

The base program takes each of these matrices as an input of its own, the A's and then the B's, and
reads them where the runtime has them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from hydrapack.support.digest import bytes_sha256
from hydrapack.support.errors import Invalid

# In packing order. A group shares its input, hence one A product.
GROUPS: tuple[tuple[str, ...], ...] = (
    ("qkv", "q", "k", "v"),
    ("o",),
    ("gate_up", "gate", "up"),
    ("down",),
)
ORDER: tuple[str, ...] = tuple(name for group in GROUPS for name in group)
# Linears that a model (Phi) has in place of several.
FUSED = {"qkv": ("q", "k", "v"), "gate_up": ("gate", "up")}
_PARENT = dict.fromkeys((*GROUPS[0], *GROUPS[1]), "self_attn") | dict.fromkeys(
    (*GROUPS[2], *GROUPS[3]), "mlp"
)

_DECODER_LINEAR = re.compile(
    r"model\.layers\.(?P<layer>0|[1-9]\d{0,3})\."
    r"(?P<parent>self_attn|mlp)\.(?P<target>[a-z_]+)_proj"
)


def module_name(layer: int, target: str) -> str:
    """``(3, "q")`` -> ``model.layers.3.self_attn.q_proj``, the name in Hugging Face's models."""
    return f"model.layers.{layer}.{_PARENT[target]}.{target}_proj"


def parse_targets(text: str | Iterable[str]) -> tuple[str, ...]:
    """``"q,k,v,o"`` or ``["q_proj", "k_proj"]`` as target names in packing order.

    Raises:
        HydrapackError: an unknown or empty target.
    """
    parts = text.split(",") if isinstance(text, str) else list(text)
    names = {part.strip().removesuffix("_proj") for part in parts}
    unknown = sorted(names - set(ORDER))
    if unknown or not names:
        raise Invalid(
            f"target modules: {', '.join(unknown) or 'none given'}; choose from {', '.join(ORDER)}"
        )
    _check_fused(names)
    return tuple(name for name in ORDER if name in names)


def _check_fused(targets: Container[str]) -> None:
    for fused, parts in FUSED.items():
        both = [part for part in parts if part in targets]
        if fused in targets and both:
            raise Invalid(
                f"target modules: {fused}_proj and {both[0]}_proj are one linear of the model; "
                "adapt one of them"
            )


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
    def a_size(self) -> int:
        """Values in the packed vector ``a``."""
        return self.layers * sum(self.rank * d_in for _, (_, d_in) in self.shapes)

    @property
    def b_size(self) -> int:
        """Values in the packed vector ``b``."""
        return self.layers * sum(d_out * self.rank for _, (d_out, _) in self.shapes)

    @property
    def a_shapes(self) -> list[tuple[int, int]]:
        """(d_in, modules * rank) of each matrix in ``a``: layer by layer, group by group."""
        own = dict(self.shapes)
        groups = [(own[group[0]][1], len(group) * self.rank) for group in self.groups()]
        return groups * self.layers

    @property
    def b_shapes(self) -> list[tuple[int, int]]:
        """(rank, d_out) of each matrix in ``b``: layer by layer, target by target."""
        return [(self.rank, d_out) for _, (d_out, _) in self.shapes] * self.layers

    @property
    def text(self) -> str:
        """Everything that decides the meaning of ``a`` and ``b``, as JSON."""
        return json.dumps(
            {
                "packing": 1,
                "layers": self.layers,
                "rank": self.rank,
                "shapes": [[name, *shape] for name, shape in self.shapes],
            },
            sort_keys=True,
        )

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of ``text``."""
        return bytes_sha256(self.text.encode())

    def groups(self) -> list[tuple[str, ...]]:
        """The targets of one layer, grouped by shared input."""
        present = [tuple(n for n in group if n in self.targets) for group in GROUPS]
        return [group for group in present if group]

    def unpack(
        self, a: torch.Tensor, b: torch.Tensor
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """(A (rank, d_in), B (d_out, rank)) of each module, in packing order."""
        shared, heads = iter(a_matrices(a, self.a_shapes)), iter(b_matrices(b, self.b_shapes))
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


def layout_of(shapes: Mapping[str, tuple[int, int]], rank: int) -> Layout:
    """The layout of modules by full name -> (d_out, d_in); single modules may be missing.

    It has the layers up to the last one named.

    Raises:
        HydrapackError: names that are no decoder linears, or layers of different shape.
    """
    found: dict[str, tuple[int, int]] = {}
    count = 0
    for name in sorted(shapes):
        match = _DECODER_LINEAR.fullmatch(name)
        if match is None or _PARENT.get(match["target"]) != match["parent"]:
            raise Invalid(_cannot_hold(name))
        count = max(count, int(match["layer"]) + 1)
        if found.setdefault(match["target"], shapes[name]) != shapes[name]:
            raise Invalid(f"target {match['target']} has different shapes in different layers")
    if not found:
        raise Invalid(_cannot_hold("none"))
    _check_fused(found)
    return Layout(
        layers=count,
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


def a_matrices(a: torch.Tensor, shapes: Sequence[tuple[int, ...]]) -> list[torch.Tensor]:
    """The matrices in ``a``, without a copy; ``shapes`` as of ``Layout.a_shapes``."""
    parts = torch.split(a, [math.prod(shape) for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def b_matrices(b: torch.Tensor, shapes: Sequence[tuple[int, ...]]) -> list[torch.Tensor]:
    """The matrices in ``b``, each copied into one piece; ``shapes`` as of ``Layout.b_shapes``."""
    parts = torch.split(b.view(shapes[0][0], -1), [columns for _, columns in shapes], 1)
    return [part.contiguous() for part in parts]


def pack_a(layout: Layout, matrices: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """A by module name, each (rank, d_in), as the packed vector ``a`` (a_size,)."""
    parts: list[torch.Tensor] = []
    for layer in range(layout.layers):
        for group in layout.groups():
            stack = torch.cat([matrices[module_name(layer, name)] for name in group])
            parts.append(stack.T.reshape(-1))
    return torch.cat(parts)


def pack_b(layout: Layout, matrices: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """B by module name, each (d_out, rank), as the packed vector ``b`` (b_size,)."""
    return torch.cat([matrices[name] for name in layout.modules()]).T.reshape(-1)
