"""torch.export, XNNPACK and ExecuTorch: from a decoder to the bytes of a .pte."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.backends.xnnpack.xnnpack_preprocess import XnnpackBackend
from executorch.exir import (
    EdgeCompileConfig,
    ExecutorchBackendConfig,
    to_edge_transform_and_lower,
)
from executorch.exir.backend.compile_spec_schema import CompileSpec
from executorch.exir.backend.partitioner import DelegationSpec
from executorch.exir.passes import MemoryPlanningPass
from torch.export import ExportedProgram

from hydrapack.base.decoder import Decoder

_COPIES = ("slice_copy", "view_copy", "select_copy")


class ChainPartitioner(XnnpackPartitioner):  # type: ignore[misc]
    """Gives XNNPACK the decoder's stage chains, one delegate each, and nothing else.

    The stock partitioner takes every operator it can: 10 to 16 small delegates a layer, each of
    which costs time to lower and to call.
    """

    def __init__(self, delegates: dict[str, str]) -> None:
        super().__init__()
        self.delegates = delegates
        # With this key XNNPACK runs one of its 17 graph passes, ConvertToLinear. The others fuse
        # and rewrite operators that the chains do not hold, and cost a quarter of the lowering.
        specs = [CompileSpec("dqlinear_partitioner", b"")]
        self.delegation_spec = DelegationSpec(XnnpackBackend.__name__, specs)

    def ops_to_not_decompose(
        self, ep: ExportedProgram
    ) -> tuple[list[torch._ops.OpOverload], Callable[[torch.fx.Node], bool] | None]:
        """As the stock partitioner, but for all nodes: every linear of the decoder is in a chain.

        Without a check by node the exporter retraces the whole graph once less, and again once
        less where no operator needs decomposing: a third of the lowering time each.
        """
        return super().ops_to_not_decompose(ep)[0], None

    def get_matched_nodes_from_configs(self, ep: ExportedProgram) -> list[list[torch.fx.Node]]:
        """Nodes that XNNPACK takes, grouped by the chain of the module they come from."""
        matched = {n for group in super().get_matched_nodes_from_configs(ep) for n in group}
        chains: dict[str, list[torch.fx.Node]] = {}
        chain_of: dict[torch.fx.Node, str] = {}
        for node in ep.graph.nodes:
            if node in matched and (chain := self._chain(node)):
                chain_of[node] = chain
                chains.setdefault(chain, []).append(node)
        for node in ep.graph.nodes:
            # Constants carry no module of their own: they go where they are used.
            if node in matched and node.op == "placeholder":
                for chain in dict.fromkeys(chain_of[u] for u in node.users if u in chain_of):
                    chains[chain].append(node)
        return list(chains.values())

    def _chain(self, node: torch.fx.Node) -> str | None:
        if node.op != "call_function":
            return None
        for path, _ in (node.meta.get("nn_module_stack") or {}).values():
            if path in self.delegates:
                return self.delegates[path]
        return None


def _sink_copies(program: ExportedProgram) -> None:
    """Move slices and views of the inputs down to their first use.

    Partitioning lifts them to the top of the graph, where all of them would be alive at once:
    twice the adapter's size in planned memory, and cold when used.
    """
    graph = program.graph_module.graph
    for node in reversed(list(graph.nodes)):
        name = getattr(node.target, "__name__", "")
        if node.op == "call_function" and node.users and any(copy in name for copy in _COPIES):
            order = {n: i for i, n in enumerate(graph.nodes)}
            first = min(node.users, key=lambda n: order[n])
            if first.op != "output":
                first.prepend(node)
    program.graph_module.recompile()


def lower_decoder(
    decoder: Decoder,
    metadata: dict[str, Any],
    target: Path,
    stage: Callable[[str], None] = lambda name: None,
) -> None:
    """Write ``decoder`` as an ExecuTorch program to ``target``.

    ``metadata`` becomes constant methods; ``stage`` hears the name of each step.
    """
    decoder.eval().requires_grad_(False)
    example: list[torch.Tensor] = [torch.zeros(1, 7, dtype=torch.long), torch.arange(7)]
    length = torch.export.Dim("S", min=1, max=decoder.context - 1)
    dynamic: list[dict[int, Any]] = [{1: length}, {0: length}]
    if decoder.layout:
        example += [torch.zeros(decoder.layout.a_size), torch.zeros(decoder.layout.b_size)]
        dynamic += [{}, {}]
    stage("tracing")
    exported = torch.export.export(
        decoder, tuple(example), dynamic_shapes=tuple(dynamic), strict=False
    )
    stage("lowering to XNNPACK")
    edge = to_edge_transform_and_lower(
        exported,
        partitioner=[ChainPartitioner(decoder.delegates())],
        compile_config=EdgeCompileConfig(_check_ir_validity=False, _skip_dim_order=True),
        constant_methods=metadata,
    )
    del exported
    _sink_copies(edge.exported_program())
    stage("planning memory")
    program = edge.to_executorch(
        ExecutorchBackendConfig(
            # The caches are written in place; a and b are passed by pointer, not copied.
            run_reinplace_pass=True,
            memory_planning_pass=MemoryPlanningPass(alloc_graph_input=False),
        )
    )
    stage("writing")
    with target.open("wb") as file:
        program.write_to_file(file)
