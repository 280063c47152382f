"""The process of a trial, which outlives a killed sweep. The sweep that resumes finds the process again."""

from __future__ import annotations

import csv
import fcntl
import io
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from pipelines.console import RUN_FOLDER, STOPPED

FIT = (sys.executable, "-m", "pipelines.cli", "fit")
SCRIPT = '"$@" >"$0/log.txt" 2>"$0/errors.txt" & echo $! >"$0/pid"; wait $!; echo $? >"$0/exit"'
"""Shell script that runs a trial and writes its exit code to a file, even if the sweep was killed."""


class Process:
    """A `dreamcade fit` in its own folder, which may be new, running or finished.

    Args:
        folder: folder of the run.
        options: options of `dreamcade fit`, without the folder.
    """

    def __init__(self, folder: Path, options: Sequence[str]) -> None:
        self.folder = folder
        self.options = list(options)
        self.shell: subprocess.Popen | None = None
        self.resumed_at: int | None = None

    def start(self) -> None:
        """Start the run, or resume it from its last checkpoint. Do nothing if it runs or is finished."""
        if self.alive() or self.finished:
            return
        resume = ["--ckpt_path", "last"]
        if not (self.folder / "checkpoints" / "last.ckpt").exists():
            resume = []
            shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.resumed_at = self._metrics_size() if resume else None
        for name in ("exit", "pid"):
            (self.folder / name).unlink(missing_ok=True)
        place = ["--trainer.default_root_dir", str(self.folder)]
        command = [*FIT, *self.options, *place, *resume]
        environment = {name: value for name, value in os.environ.items() if name != RUN_FOLDER}
        with (self.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            # The run inherits the lock and holds it until it ends. Its own process group keeps Ctrl-C away from it.
            self.shell = subprocess.Popen(
                ["sh", "-c", SCRIPT, str(self.folder), *command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[lock.fileno()],
                process_group=0,
                env=environment,
            )

    def alive(self) -> bool:
        """Return whether the run is alive, even if an earlier sweep started it."""
        if self.shell is not None:
            self.shell.poll()
        return locked(self.folder / "lock")

    def stop(self) -> None:
        """Send SIGTERM, after which the run writes a checkpoint and ends."""
        path = self.folder / "pid"
        while self.alive():
            if path.exists() and (number := path.read_text().strip()):
                with suppress(ProcessLookupError):
                    os.kill(int(number), signal.SIGTERM)
                return
            time.sleep(0.01)  # the shell is about to write it

    @property
    def exit_code(self) -> int | None:
        """Return the run's exit code, which is above 128 after a signal; None if the shell could not write it."""
        with suppress(FileNotFoundError, ValueError):
            return int((self.folder / "exit").read_text())
        return None

    @property
    def finished(self) -> bool:
        """Return whether the run ended by itself, with or without an error, and not by a signal."""
        return self.exit_code is not None and self.exit_code < 128 and STOPPED not in self.last_words()

    @property
    def was_over(self) -> bool:
        """Return whether the run was resumed with no updates left, so that its last measurements are lost."""
        return self.exit_code == 0 and self.resumed_at is not None and self.resumed_at == self._metrics_size()

    def last_words(self) -> str:
        """Return the last line on stderr, or a description of the run's end if stderr is empty."""
        with suppress(FileNotFoundError):
            lines = (self.folder / "errors.txt").read_text(errors="replace").strip().splitlines()
            if lines:
                return lines[-1].removeprefix("dreamcade: ")
        return "it was killed" if self.exit_code is None else f"it ended with exit code {self.exit_code}"

    def values(self, metric: str) -> list[float]:
        """Return the finite values of a metric in metrics.csv, ordered by step.

        A step that the run repeated, for example after a kill, counts once.
        """
        try:
            # The last line may be half written.
            text = (self.folder / "metrics.csv").read_text().rpartition("\n")[0]
        except FileNotFoundError:
            return []
        found = {}
        for row in csv.DictReader(io.StringIO(text)):
            if row.get(metric) and row.get("step"):
                found[int(row["step"])] = float(row[metric])
        return [found[step] for step in sorted(found) if math.isfinite(found[step])]

    def metrics(self) -> list[str]:
        """Return the names of all metrics in metrics.csv."""
        with suppress(FileNotFoundError):
            return (self.folder / "metrics.csv").read_text().partition("\n")[0].strip().split(",")
        return []

    def _metrics_size(self) -> int:
        path = self.folder / "metrics.csv"
        return path.stat().st_size if path.exists() else 0


def locked(path: Path) -> bool:
    """Return whether another process holds the lock of this file."""
    if not path.exists():
        return False
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
