"""All merge methods."""

from __future__ import annotations

from hydrapack.merging.elementwise import DARE, DARE_TIES, TASK_ARITHMETIC, TIES
from hydrapack.merging.hydraopt import HYDRAOPT
from hydrapack.merging.method import Method
from hydrapack.merging.spectral import SPECTRAL
from hydrapack.merging.two_sided import TWO_SIDED
from hydrapack.support.errors import Invalid

METHODS: tuple[Method, ...] = (
    SPECTRAL,
    TWO_SIDED,
    HYDRAOPT,
    TASK_ARITHMETIC,
    TIES,
    DARE,
    DARE_TIES,
)


def find_method(name: str, vera: bool = False) -> Method:
    """The method of that name, for VeRA's adapters or for LoRA's.

    Raises:
        Invalid: there is none, or it does not take VeRA.
    """
    takes = [method for method in METHODS if not vera or method.vera is not None]
    for method in METHODS:
        if method.name == name and method in takes:
            return method
    unknown = name not in [method.name for method in METHODS]
    why = "" if unknown else "not for VeRA; "
    raise Invalid(f"`method` {name}: {why}choose one of {', '.join(m.name for m in takes)}")
