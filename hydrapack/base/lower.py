"""torch.export, XNNPACK and ExecuTorch: from a decoder to the bytes of a .pte."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.backends.xnnpack.xnnpack_preprocess import XnnpackBackend
from executorch.exir import (
    EdgeCompileConfig,
    ExecutorchBackendConfig,
    to_edge_transform_and_lower,
)
from executorch.exir.backend.backend_details import BackendDetails, PreprocessResult
from executorch.exir.backend.compile_spec_schema import CompileSpec
from executorch.exir.backend.partitioner import DelegationSpec
from executorch.exir.passes import MemoryPlanningPass
from torch.export import ExportedProgram
from torch.fx.passes.infra.partitioner import Partition
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from hydrapack.base.decoder import Decoder
from hydrapack.program.load import FORWARD_VERSION, forward_inputs
from hydrapack.support.progress import Stage, silently

MAX_SEQ = 128
"""Tokens a call: a longer prompt takes several. Memory for activations is planned for so many."""
MAX_ROWS = 8
"""Logits a call."""


class LeanXnnpack(BackendDetails):  # type: ignore[misc]
    """XNNPACK's lowering, a delegate at a time: its weights go as soon as they are stored.

    ExecuTorch copies the graphs and weights of all delegates before it stores the first, and keeps
    copies and originals to the end.
    """

    counts: ClassVar[Counter[int]] = Counter()
    """How many of the program's tensors lie in each piece of memory, by its address."""

    @classmethod
    def copy_exported_program_for_preprocess(
        cls, edge_program: ExportedProgram, compile_specs: list[CompileSpec]
    ) -> ExportedProgram:
        """Nothing is copied yet."""
        return edge_program

    @staticmethod
    def preprocess(
        edge_program: ExportedProgram, compile_specs: list[CompileSpec]
    ) -> PreprocessResult:
        """What XNNPACK makes of a delegate; no weight of its own is left in memory."""
        weights = held(edge_program)
        # XNNPACK changes the graph. The weights stay where they are.
        own = copy.deepcopy(edge_program, {id(tensor): tensor for tensor in weights})
        made = XnnpackBackend.preprocess(own, compile_specs)
        for tensor in weights:
            memory = tensor.untyped_storage()
            if LeanXnnpack.counts[memory.data_ptr()] == 1 and memory.resizable():
                memory.resize_(0)
        return made


@contextmanager
def lean_xnnpack(program: ExportedProgram) -> Iterator[None]:
    """Within, XNNPACK's delegates of ``program`` are stored by ``LeanXnnpack``.

    ExecuTorch finds a backend by its class's name, the last one that has it: the name is taken for
    this while only, since other programs of the process must keep their weights.
    """
    own = LeanXnnpack.__name__
    LeanXnnpack.counts = Counter(tensor.untyped_storage().data_ptr() for tensor in held(program))
    LeanXnnpack.__name__ = XnnpackBackend.__name__
    try:
        yield
    finally:
        LeanXnnpack.__name__ = own


def held(program: ExportedProgram) -> list[torch.Tensor]:
    """The tensors of a program; of a quantized one its integers, scales and zero points."""
    found: list[torch.Tensor] = []
    for value in (*program.state_dict.values(), *program.constants.values()):
        if is_traceable_wrapper_subclass(value):
            found += [getattr(value, name) for name in value.__tensor_flatten__()[0]]
        elif isinstance(value, torch.Tensor):
            found.append(value)
    return found


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

    def generate_partitions(self, ep: ExportedProgram) -> list[Partition]:
        """The chains, last first. Between any two lies an attention, so none can be merged.

        The stock partitioner tries, with sets of all nodes before and after each node: a gigabyte
        for 30 layers.
        """
        chains = reversed(self.get_matched_nodes_from_configs(ep))
        return [Partition(id=i, nodes=chain) for i, chain in enumerate(chains)]

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
    """Write ``decoder`` as an ExecuTorch program to ``target``; its weights are gone then.

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
    with lean_xnnpack(exported):
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
