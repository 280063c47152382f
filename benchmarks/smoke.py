"""The options that every benchmark has: `--smoke` runs its whole path in seconds, `--out` says where results go."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
IMAGES = ROOT / "docs" / "images"
_KEPT = object()
DEBUG = ["--config", "configs/debug.yaml"]
"""Arguments of `dreamcade fit` that bring any experiment to its end in a few small updates."""


class Parser(argparse.ArgumentParser):
    """A parser whose arguments say what they are in a smoke run, `smoke=`, beside what they are by default.

    A smoke run measures nothing: it shows that every part of a benchmark still works. What it writes goes to a
    temporary folder unless `--out` names one, and says that it is no measurement.
    """

    def __init__(self, description: str) -> None:
        self._small: dict[str, Any] = {}
        super().__init__(description=description.splitlines()[0], allow_abbrev=False)
        self.add_argument(
            "--smoke", action="store_true", help="run the whole path in seconds, at sizes that measure nothing"
        )
        self.add_argument(
            "--out", type=Path, help="folder of the result; benchmarks/results, or a temporary one with --smoke"
        )

    def add_argument(self, *names: Any, smoke: Any = _KEPT, **options: Any) -> argparse.Action:
        """Add an argument; `smoke` is its default in a smoke run, where a path is one within `--out`."""
        action = super().add_argument(*names, **options)
        if smoke is not _KEPT:
            self._small[action.dest] = smoke
        return action

    def add_folder(self, default: str) -> None:
        """Add `--folder`, where the training runs of a benchmark are kept."""
        self.add_argument(
            "--folder", type=Path, default=Path(default), smoke=Path("runs"), help="folder of the runs, which are kept"
        )

    def parse_args(self, *arguments: Any) -> Any:
        """Parse the command line."""
        if (options := super().parse_args(*arguments)).smoke:
            self.set_defaults(**self._small)
            options = super().parse_args(*arguments)
            options.out = (options.out or Path(tempfile.mkdtemp(prefix="smoke_"))).resolve()
            for name, value in self._small.items():
                if isinstance(value, Path) and getattr(options, name) == value:
                    setattr(options, name, options.out / value)
        options.images = options.out or IMAGES
        options.out = options.out or RESULTS
        return options
