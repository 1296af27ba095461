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
from hydrapack.program.load import FORWARD_VERSION, forward_inputs
from hydrapack.support.progress import Stage, silently

MAX_SEQ = 128
"""Tokens a call: a longer prompt takes several. Memory for activations is planned for so many."""
MAX_ROWS = 8
"""Logits a call."""


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


def max_seq(context: int) -> int:
    """Tokens that one call of a program of so many positions takes."""
    return min(MAX_SEQ, context - 1)


def lower_decoder(
    decoder: Decoder,
    metadata: dict[str, Any],
    target: Path,
    stage: Stage = silently,
) -> None:
    """Write ``decoder`` as an ExecuTorch program to ``target``.

    ``metadata`` becomes constant methods, beside those of what a call takes; ``stage`` hears the
    name of each step.
    """
    decoder.eval().requires_grad_(False)
    layout = decoder.layout
    matrices = [torch.zeros(s) for s in layout.a_shapes + layout.b_shapes] if layout else []
    example = forward_inputs([0] * 7, range(7), range(3), True, matrices)
    length = torch.export.Dim("S", min=1, max=max_seq(decoder.context))
    dynamic: list[Any] = [{1: length}, {0: length}, {0: torch.export.Dim("K", min=1, max=MAX_ROWS)}]
    if matrices:
        # Of the switch, and of all that Decoder.forward takes as one.
        dynamic += [{}, tuple({} for _ in matrices)]
    stage("tracing")
    exported = torch.export.export(
        decoder, tuple(example), dynamic_shapes=tuple(dynamic), strict=False
    )
    stage("lowering to XNNPACK")
    edge = to_edge_transform_and_lower(
        exported,
        partitioner=[ChainPartitioner(decoder.delegates())],
        compile_config=EdgeCompileConfig(_check_ir_validity=False, _skip_dim_order=True),
        constant_methods={
            **metadata,
            "get_max_seq_len": max_seq(decoder.context),
            "get_max_rows": MAX_ROWS,
            "get_forward_version": FORWARD_VERSION,
        },
    )
    del exported
    stage("planning memory")
    program = edge.to_executorch(
        ExecutorchBackendConfig(
            # The caches are written in place; the adapter is passed by pointer, not copied.
            run_reinplace_pass=True,
            memory_planning_pass=MemoryPlanningPass(alloc_graph_input=False),
        )
    )
    stage("writing")
    with target.open("wb") as file:
        program.write_to_file(file)
