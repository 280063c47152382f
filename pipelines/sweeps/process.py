"""The process of a trial. It outlives a sweep that is killed, and is found again by the one that goes on."""

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
"""The shell writes down how the run ended, whether or not a sweep is there to see it."""


class Process:
    """A `dreamcade fit` in a folder of its own, started, found running, or found finished.

    Args:
        folder: folder of the run.
        options: options of `dreamcade fit`, but for the folder.
    """

    def __init__(self, folder: Path, options: Sequence[str]) -> None:
        self.folder = folder
        self.options = list(options)
        self.shell: subprocess.Popen | None = None
        self.resumed_at: int | None = None

    def start(self) -> None:
        """Start the run; or go on with it from its last checkpoint; or leave it alone, if it runs or is finished."""
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
            # The run inherits the lock, and holds it for as long as it lives. A group of its own keeps Ctrl-C from it.
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
        """Whether the run goes on, whoever started it."""
        if self.shell is not None:
            self.shell.poll()
        return locked(self.folder / "lock")

    def stop(self) -> None:
        """Send SIGTERM: the run leaves a checkpoint and ends."""
        path = self.folder / "pid"
        while self.alive():
            if path.exists() and (number := path.read_text().strip()):
                with suppress(ProcessLookupError):
                    os.kill(int(number), signal.SIGTERM)
                return
            time.sleep(0.01)  # the shell is about to write it

    @property
    def exit_code(self) -> int | None:
        """How the run ended, above 128 by a signal; null where nobody was left to write it down."""
        with suppress(FileNotFoundError, ValueError):
            return int((self.folder / "exit").read_text())
        return None

    @property
    def finished(self) -> bool:
        """Whether the run ended by itself, well or badly, rather than by a signal."""
        return self.exit_code is not None and self.exit_code < 128 and STOPPED not in self.last_words()

    @property
    def was_over(self) -> bool:
        """Whether it was resumed with nothing left to do: what it had measured last was cut off with it."""
        return self.exit_code == 0 and self.resumed_at is not None and self.resumed_at == self._metrics_size()

    def last_words(self) -> str:
        """Return the last line on stderr, or how it ended where there is none."""
        with suppress(FileNotFoundError):
            lines = (self.folder / "errors.txt").read_text(errors="replace").strip().splitlines()
            if lines:
                return lines[-1].removeprefix("dreamcade: ")
        return "it was killed" if self.exit_code is None else f"it ended with exit code {self.exit_code}"

    def values(self, metric: str) -> list[float]:
        """Return what metrics.csv says of a metric, in order of its steps, but for what is not finite.

        A step that was repeated, as after a kill, counts once.
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
        """Return the names of all that was measured."""
        with suppress(FileNotFoundError):
            return (self.folder / "metrics.csv").read_text().partition("\n")[0].strip().split(",")
        return []

    def _metrics_size(self) -> int:
        path = self.folder / "metrics.csv"
        return path.stat().st_size if path.exists() else 0


def locked(path: Path) -> bool:
    """Whether another process holds this file."""
    if not path.exists():
        return False
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
