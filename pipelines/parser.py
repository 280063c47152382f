"""The command lines of the commands that train nothing."""

from __future__ import annotations

from jsonargparse import ArgumentParser

from pipelines.cli import fail
from pipelines.spelling import explain


class Parser(ArgumentParser):
    """Answers a mistake with one line."""

    def error(self, message: str, ex: Exception | None = None) -> None:  # type: ignore[override]
        """Print one line and exit with code 2."""
        fail(explain(message, [option.removeprefix("--") for a in self._actions for option in a.option_strings]))
