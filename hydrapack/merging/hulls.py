"""The choices of each module that are worth their bytes, and which of them to take.

Only a module's choices on the lower convex hull of (bytes, error) are worth taking: they are the
Lagrangian's choices for all prices. Every module starts at its cheapest choice, and the steps with
the largest gain a byte are bought until the bytes are spent, or every task's error is small enough.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from hydrapack.merging.candidates import Choice

Step = tuple[float, str, int]
"""Minus the gain a byte, module, place on its hull."""


def lower_hull(found: Iterable[Choice]) -> list[Choice]:
    """Of choices sorted by bytes, those on the lower convex hull of (bytes, error)."""
    hull: list[Choice] = []
    for choice in found:
        if hull and choice.error >= hull[-1].error:
            continue
        while len(hull) > 1 and gain(hull[-2], choice) >= gain(hull[-2], hull[-1]):
            hull.pop()
        if hull and choice.bytes == hull[-1].bytes:
            hull.pop()
        hull.append(choice)
    return hull


def gain(old: Choice, new: Choice) -> float:
    """Squared error saved a byte."""
    return (old.error - new.error) / max(new.bytes - old.bytes, 1)


def steps_of(hulls: Mapping[str, list[Choice]]) -> list[Step]:
    """Each step along each hull, the largest gain a byte first."""
    return sorted(
        (-gain(hull[i], hull[i + 1]), name, i)
        for name, hull in hulls.items()
        for i in range(len(hull) - 1)
    )


def buy(
    hulls: Mapping[str, list[Choice]], room: int, steps: Sequence[Step]
) -> dict[str, Choice] | None:
    """Choices of at most ``room`` bytes in all; None if the cheapest take more.

    Steps are taken by gain a byte; one that no longer fits ends its module's climb.
    """
    at = dict.fromkeys(hulls, 0)
    room -= sum(hull[0].bytes for hull in hulls.values())
    if room < 0:
        return None
    for _, name, i in steps:
        price = hulls[name][i + 1].bytes - hulls[name][i].bytes
        if at[name] == i and price <= room:
            at[name], room = i + 1, room - price
    return {name: hull[at[name]] for name, hull in hulls.items()}


def climb(hulls: Mapping[str, list[Choice]], limits: Sequence[float]) -> dict[str, Choice] | None:
    """The cheapest choices, by gain a byte, whose tasks' errors add up to at most ``limits``.

    None where all steps together do not reach them.
    """
    now = {name: hull[0] for name, hull in hulls.items()}
    left = [sum(parts) for parts in zip(*(c.errors for c in now.values()), strict=True)]
    for _, name, i in steps_of(hulls):
        if all(own <= limit for own, limit in zip(left, limits, strict=True)):
            return now
        old, now[name] = now[name], hulls[name][i + 1]
        parts = zip(left, old.errors, now[name].errors, strict=True)
        left = [total - before + after for total, before, after in parts]
    reached = all(own <= limit for own, limit in zip(left, limits, strict=True))
    return now if reached else None
