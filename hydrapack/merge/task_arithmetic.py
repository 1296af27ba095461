"""Task arithmetic (https://arxiv.org/abs/2212.04089) with PEFT's function: one averaged adapter.

As in PEFT's ``add_weighted_adapter(combination_type="linear")``, A and B are each averaged, every
task with the square root of its weight times its scaling. Weights are uniform, as in the HydraOpt
paper's baseline.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from hydrapack.adapters.lora import LoraModule
from hydrapack.errors import InputError
from hydrapack.merge.module import MergedModule, MergeOptions


def merge_task_arithmetic(updates: Sequence[LoraModule], options: MergeOptions) -> MergedModule:
    """One head for all tasks.

    Raises:
        InputError: M other than 1, or adapters of different ranks.
    """
    from peft.utils.merge_utils import task_arithmetic

    if options.heads != 1:
        raise InputError("task-arithmetic merges to one head: leave --heads out or give --heads 1")
    present = [u for u in updates if u.rank]
    ranks = {u.rank for u in present}
    if ranks != {options.rank}:
        raise InputError(
            f"task-arithmetic averages A and B as they are: all ranks must equal --rank; "
            f"adapters have {sorted(ranks)}, --rank is {options.rank}"
        )
    weights = torch.tensor([math.sqrt(u.scaling / len(updates)) for u in present])
    A = task_arithmetic([u.A for u in present], weights)
    B = task_arithmetic([u.B for u in present], weights)
    return MergedModule(A, B[None], (0,) * len(updates))
