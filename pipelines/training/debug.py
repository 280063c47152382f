"""Debug runs, which only show that everything works: `debug: true` makes every class of a configuration small."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import Any

from jsonargparse import Namespace

from pipelines.runs.checkpoints import OWN


def shrink(config: Any) -> None:
    """Replace arguments of the classes in a configuration by cheap ones, in place.

    The attribute `debug` of a class maps names of arguments to limits. A number is the largest value that the argument,
    or each number of a list, may have. A limit of any other type replaces the value.
    """
    if isinstance(config, list):
        for each in config:
            shrink(each)
    if not isinstance(config, Namespace):
        return
    path, _, name = str(config.get("class_path", "")).rpartition(".")
    if path.partition(".")[0] in OWN:
        named = getattr(importlib.import_module(path), name)
        if limits := getattr(named, "debug", {}):
            defaults = {argument.name: argument.default for argument in inspect.signature(named).parameters.values()}
            config["init_args"] = config.get("init_args") or Namespace()
            _limit(config["init_args"], limits, defaults)
    for value in vars(config).values():
        shrink(value)


def _limit(arguments: Any, limits: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    if arguments is None:
        return  # a null where none may be, which is refused later
    for name, limit in limits.items():
        given = arguments[name] if name in arguments else defaults.get(name)
        if isinstance(limit, Mapping):
            arguments[name] = (
                Namespace(**asdict(given)) if is_dataclass(given) and not isinstance(given, type) else given
            )
            _limit(arguments[name], limit, {})
        else:
            arguments[name] = _at_most(given, limit)


def _at_most(given: Any, limit: Any) -> Any:
    if isinstance(given, list | tuple) and isinstance(limit, int):
        return type(given)(_at_most(each, limit) for each in given)
    return min(given, limit) if isinstance(given, int | float) and isinstance(limit, int | float) else limit
