"""Changes to the callbacks that an experiment configures.

The command line changes them by `--callbacks.Collect.prefill 100` and `--callbacks.DreamVideo null`, and a file of
configs/size/ by the key `callbacks+`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from jsonargparse import Namespace

from modules.errors import UserError, nearest

Changes = dict[str, dict[str, Any] | None]
"""New arguments of callbacks by the names of their classes; None leaves a callback out."""
WORD = re.compile(r"--callbacks\.([\w.]+)(?:=(.*))?", re.DOTALL)


def as_changes(arguments: Sequence[str]) -> list[str]:
    """Return a command line in which every `--callbacks.CLASS.KEY VALUE` is spelled `--callbacks+={CLASS: ...}`."""
    words, rest = [], list(arguments)
    while rest:
        word = rest.pop(0)
        if match := WORD.fullmatch(word):
            keys, value = match.groups()
            change: Any = yaml.safe_load((rest.pop(0) if rest else "") if value is None else value)
            if "." not in keys and change is not None and not isinstance(change, dict):
                raise UserError(
                    f"callbacks.{keys} is {change}: expected arguments, as in --callbacks.{keys}.KEY VALUE, or null, "
                    "which leaves it out"
                )
            for key in reversed(keys.split(".")):
                change = {key: change}
            word = f"--callbacks+={json.dumps(change)}"
        words.append(word)
    return words


def apply(changes: Sequence[Changes], callbacks: Sequence[Namespace]) -> list[Namespace]:
    """Return callbacks with changes applied. Of several callbacks of one class, the last is changed.

    Raises:
        UserError: the run has no callback of that class.
    """
    by_name = {str(each["class_path"]).rpartition(".")[2]: each for each in callbacks}
    for change in changes:
        for name, arguments in change.items():
            if name not in by_name:
                raise UserError(
                    f"callbacks.{name}: this run has no such callback, the nearest is {nearest(name, by_name)}"
                )
            callback = by_name[name]
            if arguments is None:
                callbacks = [each for each in callbacks if each is not callback]
                continue
            callback["init_args"] = callback.get("init_args") or Namespace()
            _merge(callback["init_args"], arguments)
    return list(callbacks)


def _merge(held: Any, new: Mapping[str, Any]) -> None:
    """Put values into settings. Keys that are given directly under a class_path are its init_args."""
    for key, value in new.items():
        known = held.get(key)
        if isinstance(known, (Namespace, dict)) and isinstance(value, Mapping):
            inside = "class_path" in known and not {"class_path", "init_args"} & value.keys()
            _merge(known["init_args"] if inside else known, value)
        else:
            held[key] = value
