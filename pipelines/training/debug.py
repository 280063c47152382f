"""Runs that only show that everything works: `debug: true` makes all that a configuration names small."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import Any

from jsonargparse import Namespace

from pipelines.runs.checkpoints import OWN


def shrink(config: Any) -> None:
    """Let every class in a configuration have arguments that cost next to nothing, where it names such.

    A class says them in its attribute `debug`, arguments by name. A number is the largest that is allowed, also of each
    number in a list; whatever else replaces what was given.
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
