"""The option `--actor` of the commands that play by a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.commands.parser import Parser
from pipelines.console import fail, find_configs
from pipelines.runs import checkpoints


def parse(
    parser: Parser,
    arguments: Sequence[str],
    replaced: Mapping[str, str],
    searches: bool = False,
    default: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Parse a command line on which `--actor.KEY` changes the actor that the checkpoint's run names.

    Args:
        parser: parser of the command.
        arguments: words of the command line.
        replaced: options of earlier versions, and what to write instead.
        searches: skip actors of the run that do not search.
        default: {class_path, init_args} of the actor where the run names none.

    Returns:
        The arguments of the command.
    """
    for word in arguments:
        option = word.partition("=")[0]
        if option in replaced:
            fail(f"there is no option {option} any more: write {replaced[option]}")
    parser.add_argument("-c", "--config", action="config", help="YAML file with options of this command")
    words = find_configs(arguments)
    changed = any(re.match(r"--actor\b|--config\b|-c\b", word) for word in words)
    if changed and (path := _checkpoint(words)) is not None:
        named = checkpoints.actor(path, checkpoints.read(path), searches) or default
        parser.set_defaults({"actor": named})
    parsed = parser.parse_args(words)
    parsed.pop("config", None)
    return vars(parser.instantiate(parsed))


def _checkpoint(words: Sequence[str]) -> Path | None:
    """Return the checkpoint on a command line, whose every option takes one value; None if there is no such file."""
    after_option = False
    for word in words:
        if not word.startswith("-") and not after_option:
            path = Path(word).expanduser()
            return path if path.is_file() else None
        after_option = word.startswith("-") and "=" not in word
    return None
