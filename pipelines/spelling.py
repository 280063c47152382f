"""Suggests the nearest correct spelling of a misspelled option, key or class."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from modules.errors import nearest

PROJECT = Path(__file__).resolve().parent.parent
FOREIGN_CLASSES = (
    "lightning.pytorch.callbacks.ModelCheckpoint",
    "lightning.pytorch.callbacks.EarlyStopping",
    "lightning.pytorch.callbacks.LearningRateMonitor",
    "lightning.pytorch.loggers.TensorBoardLogger",
)


@cache
def classes() -> dict[str, list[str]]:
    """Return the parameters of every class of the project by its class_path, without importing the classes.

    A field of a dataclass is named after the parameter or the field that takes the dataclass: sampling.batch_size,
    prioritised.alpha.
    """
    found: dict[str, list[str]] = {path: [] for path in FOREIGN_CLASSES}
    fields: dict[str, dict[str, str]] = {}
    arguments: dict[str, list[ast.arg]] = {}
    for folder in ("modules", "datamodules", "pipelines"):
        for path in sorted((PROJECT / folder).rglob("*.py")):
            module = ".".join(path.relative_to(PROJECT).with_suffix("").parts)
            for node in ast.parse(path.read_text()).body:
                if not isinstance(node, ast.ClassDef):
                    continue
                if any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
                    annotated = [f for f in node.body if isinstance(f, ast.AnnAssign)]
                    fields[node.name] = {ast.unparse(f.target): _kind(f.annotation) for f in annotated}
                if path.parent.name == "layers":
                    continue  # a configuration never names layers
                inits = [f for f in node.body if isinstance(f, ast.FunctionDef) and f.name == "__init__"]
                arguments[f"{module}.{node.name}"] = [a for f in inits for a in f.args.args[1:]]
    for owner, taken in arguments.items():
        found[owner] = [argument.arg for argument in taken]
        for argument in taken:
            if argument.arg == "settings":  # the name where code, not a configuration, makes an object
                continue
            for name, kind in fields.get(_kind(argument.annotation), {}).items():
                found[owner] += [f"{argument.arg}.{name}", *(f"{name}.{inner}" for inner in fields.get(kind, ()))]
    return found


def _kind(annotation: ast.expr | None) -> str:
    """Return the name of the class that an annotation names, without "| None"."""
    return "" if annotation is None else ast.unparse(annotation).removesuffix(" | None")


def explain(message: str, keys: Iterable[str]) -> str:
    """Return a message of the argument parser as one line with the nearest correct spelling.

    Args:
        message: message of jsonargparse, which may have many lines.
        keys: known keys of a configuration, such as trainer.max_steps.
    """
    line = re.sub(r"\s+", " ", message).strip()
    if match := re.search(r"unrecognized arguments: --(\S+?)(=| |$)", line):
        group = match[1].partition(".")[0]
        fields = {key for keys in classes().values() for key in keys if key.startswith(f"{group}.")}
        return f"unknown option --{match[1]}, the nearest is --{nearest(match[1], fields or keys)}"
    if match := re.search(r"Group '(?:[\w.]+\.)?(\w+)' does not accept option '([^']+)'", line):
        group, wrong = match[1], f"{match[1]}.{match[2]}"
        if fields := {key for known in classes().values() for key in known if key.startswith(f"{group}.")}:
            return f"unknown key {wrong}, the nearest is {nearest(wrong, fields)}"
    if match := re.search(r"does not accept option '([^']+)'", line):
        return f"unknown key {match[1]}, the nearest is {nearest(match[1], keys)}"
    if match := re.search(r"Option '([\w.]+)' is not accepted", line):
        *_, name = match[1].split(".")
        # Compare the last words of keys. A parameter takes precedence over a field, except the parameter of the given
        # name: there the user left out the group of a field. Of fields in several groups the group is not known.
        by_name: dict[str, set[str]] = {}
        for key in {key for keys in classes().values() for key in keys} - {name}:
            by_name.setdefault(key.rpartition(".")[2], set()).add(key)
        close = nearest(name, by_name)
        fits = by_name[close]
        known = close in fits or (len(fits) > 1 and close != name)
        return f"unknown key {match[1]!r}, the nearest is {(close if known else min(fits))!r}"
    if match := re.search(r"given class_path '([^']+)'|dot import path string: (\S+)", line):
        path = match[1] or match[2]
        return f"there is no class {path}, the nearest is {_nearest_class(path)}"
    if match := re.search(r'Parser key "([^"]+)":.*?Expected a typing.Literal\[(.+)\].*Got value: (\S+)', line):
        choices = re.findall(r"'([^']+)'", match[2])
        return f"{match[1]} is one of {', '.join(choices)}, not {match[3]}: the nearest is {nearest(match[3], choices)}"
    if match := re.search(r'Parser key "([^"]+)".*Errors: (.*)', line):
        return f"{match[1]}: {re.sub(r' Given value.*', '', match[2])}"
    return re.sub(r" Given value.*", "", line)


def _nearest_class(path: str) -> str:
    by_name = {known.rsplit(".", 1)[-1]: known for known in classes()}
    return by_name[nearest(path.rsplit(".", 1)[-1], by_name)]
