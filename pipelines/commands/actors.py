"""The option `--actor` of the commands that play by a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from pipelines.commands.parser import Parser
from pipelines.console import fail, find_configs
from pipelines.runs import checkpoints

CONFIG = {"-c", "--config"}


def parse(
    parser: Parser,
    arguments: Sequence[str],
    replaced: Mapping[str, str],
    searches: bool = False,
    default: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Parse a command line on which `--actor` names an actor, or `--actor.KEY` alone changes the one of the run.

    Args:
        parser: parser of the command.
        arguments: words of the command line.
        replaced: options of earlier versions, and their replacements.
        searches: skip actors of the run that do not search.
        default: {class_path, init_args} of the actor where the run names none.

    Returns:
        The arguments of the command.
    """
    for word in arguments:
        option = word.partition("=")[0]
        if option in replaced:
            fail(f"the option {option} was removed: use {replaced[option]}")
    parser.add_argument("-c", "--config", action="config", help="YAML file with options of this command")
    words = find_configs(arguments)
    if _changes_actor(words) and (path := _checkpoint(words)) is not None:
        named = checkpoints.actor(path, checkpoints.read(path), searches) or default
        parser.set_defaults({"actor": named})
    parsed = parser.parse_args(words)
    parsed.pop("config", None)
    return vars(parser.instantiate(parsed))


def _changes_actor(words: Sequence[str]) -> bool:
    """Return whether a command line and its files change settings of an actor whose class they do not name."""
    changed = False
    for before, word in pairwise(["", *words]):
        option, equals, value = word.partition("=")
        if option in ("--actor", "--actor.class_path"):
            return False
        changed |= option.startswith("--actor.")
        if CONFIG & {before, option}:
            actor = _actor_in(Path(value if equals else word))
            if "class_path" in actor:
                return False
            changed |= bool(actor)
    return changed


def _actor_in(path: Path) -> dict[str, Any]:
    """Return what a YAML file says of the actor; the parser reports files that cannot be read."""
    try:
        actor = yaml.safe_load(path.read_text(encoding="utf-8"))["actor"]
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
        return {}
    return actor if isinstance(actor, dict) else {"class_path": actor}


def _checkpoint(words: Sequence[str]) -> Path | None:
    """Return the checkpoint on a command line, whose every option takes one value; None if there is no such file."""
    after_option = False
    for word in words:
        if not word.startswith("-") and not after_option:
            path = Path(word).expanduser()
            return path if path.is_file() else None
        after_option = word.startswith("-") and "=" not in word
    return None
