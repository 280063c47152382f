"""Arguments side by side, for classes that take them in value objects."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any


def grouped(options: Mapping[str, Any], **groups: tuple[Any, dict[str, str]]) -> dict[str, Any]:
    """Return options in which those of value objects are put into these.

    Args:
        options: arguments, by names that are unique among all groups.
        **groups: the value object that an argument starts from, and the name that stands for each of its fields.
    """
    left = dict(options)
    for argument, (value, names) in groups.items():
        left[argument] = replace(value, **{field: left.pop(name) for name, field in names.items() if name in left})
    return left
