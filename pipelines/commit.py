"""Which dreamcade this is."""

from __future__ import annotations

import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent


@cache
def version() -> str:
    """Return the version that is installed."""
    try:
        return metadata.version("dreamcade")
    except metadata.PackageNotFoundError:
        return "unknown"


@cache
def commit() -> str | None:
    """Return the commit of the checkout, with + where tracked files differ from it; None where there is none."""
    if not (PROJECT / ".git").exists():  # a folder around it may be another project's checkout
        return None
    head, changes = _git("rev-parse", "--short=12", "HEAD"), _git("status", "--porcelain", "--untracked-files=no")
    return head and head + "+" * bool(changes)


def _git(*arguments: str) -> str | None:
    try:
        run = subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=PROJECT, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return run.stdout.strip()
