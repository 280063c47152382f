"""The command-line parser of the commands that train nothing."""

from __future__ import annotations

from typing import Any

from jsonargparse import ArgumentParser

from pipelines.console import expand_home, fail
from pipelines.spelling import explain


class Parser(ArgumentParser):
    """Reports a mistake in one line, and accepts no abbreviated options."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        """Parse the arguments, and expand ~ to the home folder in every path."""
        return expand_home(super().parse_args(*args, **kwargs))

    def error(self, message: str, ex: Exception | None = None) -> None:  # type: ignore[override]
        """Print one line and exit with code 2."""
        fail(explain(message, [option.removeprefix("--") for a in self._actions for option in a.option_strings]))
