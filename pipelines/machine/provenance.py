"""Provenance of a result: commit, command, versions and machine."""

from __future__ import annotations

import datetime
import json
import os
import platform
import shlex
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from pipelines.spelling import PROJECT

PACKAGES = ("torch", "numpy", "lightning", "torchrl", "ale-py", "gymnasium")
"""Packages whose versions are part of a benchmark's result."""
WRITTEN = ("benchmarks/results/", "docs/images/")
"""Folders that measurements write: files that changed there change no measurement."""


def provenance() -> dict[str, Any]:
    """Return commit, date, machine, Python version and versions of PACKAGES.

    The commit ends with + if tracked files other than results differ from it. It is None before the first commit.
    """
    return {
        "commit": commit(),
        "date": now(),
        "machine": {"cpu": cpu_model(), "cores": cores(), "gpu": gpu_model()},
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := installed_version(name))},
    }


def record_start(folder: Path) -> None:
    """Append an entry to reproduce.json with everything needed to repeat this start.

    The file is a list with one entry per start, because every resume of a run is a start.
    """
    import torch

    path = folder / "reproduce.json"
    start = {
        "date": now(),
        "command": shlex.join(["dreamcade", *sys.argv[1:]]),
        "folder": os.getcwd(),
        "commit": git("rev-parse", "HEAD"),
        "changed_files": changed_files(),
        "python": platform.python_version(),
        "machine": {
            "system": platform.platform(),
            "cpu": cpu_model(),
            "cores": cores(),
            "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        },
        "versions": installed_versions(),
    }
    starts = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    replace_text(path, json.dumps([*starts, start], indent=1) + "\n")


def replace_text(path: Path, text: str) -> None:
    """Write a file atomically: if the disk is full, the old content stays."""
    aside = path.with_suffix(".tmp")
    try:
        aside.write_text(text, encoding="utf-8", newline="")
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def now() -> str:
    """Return the current date and time in UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


@cache
def version() -> str:
    """Return the version of dreamcade."""
    return installed_version("dreamcade") or "unknown"


@cache
def commit() -> str | None:
    """Return the checkout's commit, or None if there is none; with + if tracked files differ, other than WRITTEN."""
    head = git("rev-parse", "--short=12", "HEAD")
    return head and head + "+" * any(not name.startswith(WRITTEN) for name in changed_files())


def changed_files() -> list[str]:
    """Return the tracked files that differ from the checkout's commit."""
    return (git("diff", "--name-only", "HEAD") or "").splitlines()


def installed_version(package: str) -> str | None:
    """Return the version of a package, or None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def installed_versions() -> dict[str, str]:
    """Return the version of every installed package."""
    versions = {found.metadata["Name"]: found.version for found in metadata.distributions()}
    return dict(sorted(versions.items(), key=lambda item: item[0].lower()))


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_model() -> str:
    """Return the name of the processor."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def gpu_model() -> str | None:
    """Return the name of the first GPU, or None if there is none."""
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


def git(*arguments: str) -> str | None:
    """Return the output of a git command on the checkout, or None without a checkout or git."""
    if not (PROJECT / ".git").exists():  # a parent folder may be another project's checkout
        return None
    try:
        run = subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=PROJECT, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return run.stdout.strip()
