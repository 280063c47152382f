"""The order in which callbacks run, whatever the order in which a configuration lists them."""

from __future__ import annotations

from collections.abc import Sequence

from lightning import Callback


def in_order(callbacks: Sequence[Callback]) -> list[Callback]:
    """Return callbacks so that each one comes before the classes in its `runs_before`; otherwise keep their order.

    The attribute `runs_before` of a class is a tuple of class names, which stand for their subclasses too.
    """
    left, ordered = list(callbacks), []
    while left:
        free = (one for one in left if not any(_precedes(other, one) for other in left if other is not one))
        first = next(free, None)
        assert first is not None, f"these callbacks want to run before each other: {_names(left)}"
        left.remove(first)
        ordered.append(first)
    return ordered


def _precedes(one: Callback, other: Callback) -> bool:
    named = getattr(one, "runs_before", ())
    return any(parent.__name__ in named for parent in type(other).__mro__)


def _names(callbacks: Sequence[Callback]) -> str:
    return ", ".join(type(callback).__name__ for callback in callbacks)
