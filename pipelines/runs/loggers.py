"""Loggers that survive a resume and a missing network."""

from __future__ import annotations

import csv
import io
import os
import re
import socket
import threading
import uuid
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch import loggers
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities.rank_zero import rank_zero_only, rank_zero_warn

from pipelines.machine.provenance import replace_text

PROBE_SECONDS = 3.0


class CSVLogger(loggers.CSVLogger):
    """Writes metrics.csv into the run's folder; a resumed run appends to it.

    Args:
        save_dir: the folder; null is the run's own.
        flush_logs_every_n_steps: rows kept in memory before they are written.
    """

    def __init__(self, save_dir: Path | None = None, flush_logs_every_n_steps: int = 100) -> None:
        super().__init__(save_dir or ".", name="", version="", flush_logs_every_n_steps=flush_logs_every_n_steps)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The writer."""
        if self._experiment is None:
            path = Path(self.log_dir) / "metrics.csv"
            header: list[str] | None = []
            if path.exists() and (header := _header(path)) is None:
                rank_zero_warn(f"{path} is no table of metrics: it is kept as metrics_damaged.csv, and a new one begun")
                path.rename(path.with_stem("metrics_damaged"))
            if header:
                _drop_cut_line(path)
            self._experiment = _Writer(self.log_dir)
            self._experiment.metrics_keys = header or []
        return self._experiment


class _Writer(ExperimentWriter):
    """Appends to the file that is there, and whatever happens leaves it with no less than it held."""

    def _check_log_dir_exists(self) -> None:
        """Delete nothing."""

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        path = Path(self.metrics_file_path)
        table = io.StringIO()
        with path.open(newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(table, fieldnames)
            writer.writeheader()
            writer.writerows(csv.DictReader(file))
        replace_text(path, table.getvalue())


def _drop_cut_line(path: Path) -> None:
    """Take away the last line where it has no end: what is appended would become part of it."""
    with path.open("r+b") as file:
        file.truncate(file.read().rfind(b"\n") + 1)


def _header(path: Path) -> list[str] | None:
    """Return the columns of metrics.csv; None where it is not what a run wrote, but for a last line that was cut."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            text = file.read()
        header, *rows = csv.reader(io.StringIO(text, newline=""))
    except (ValueError, csv.Error):
        return None
    usual = (
        "\n" in text
        and "step" in header
        and len(header) == len({*header})
        and all(len(row) <= len(header) for row in rows)
    )
    return header if usual else None


class WandbLogger(loggers.WandbLogger):
    """Weights & Biases, offline unless told otherwise; a resumed run keeps its id.

    Where W&B cannot be reached an online run goes on offline, and says so once. A run that `wandb agent` starts is
    online, since its sweep waits for what it measures.

    Args:
        mode: "offline" (send it later with `wandb sync`), "online" or "disabled".
        project: W&B's project.
        entity: W&B's user or team.
        name: name of the run; null lets W&B choose.
        tags: tags of the run.
        save_dir: the folder; null is the run's own.
    """

    def __init__(
        self,
        mode: Literal["offline", "online", "disabled"] = "offline",
        project: str = "dreamcade",
        entity: str | None = None,
        name: str | None = None,
        tags: list[str] | None = None,
        save_dir: Path | None = None,
    ) -> None:
        folder = Path(save_dir or ".")
        if mode == "offline" and "WANDB_SWEEP_ID" in os.environ:
            mode = "online"
        if mode == "online" and not reachable():
            rank_zero_warn("W&B cannot be reached: the run goes on offline, send it later with `wandb sync`")
            mode = "offline"
        online = mode == "online"
        if not online:
            os.environ.setdefault("WANDB_SILENT", "true")
        settings: dict[str, Any] = {"mode": mode, "entity": entity, "tags": tags, "resume": "allow"}
        super().__init__(
            name=name,
            save_dir=folder,
            id=_run_id(folder),
            project=project,
            offline=not online,
            log_model=online,
            **settings,
        )
        # Lightning passes an argument that W&B took away: it warns on every run, even where the argument is None.
        self._wandb_init.pop("anonymous", None)


def reachable(seconds: float = PROBE_SECONDS) -> bool:
    """Say whether W&B's server accepts a connection in time; looking up a name has no time-out of its own."""
    address = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))
    answers: list[bool] = []

    def probe() -> None:
        port = address.port or (80 if address.scheme == "http" else 443)
        try:
            socket.create_connection((address.hostname, port), timeout=seconds).close()
            answers.append(True)
        except OSError:
            answers.append(False)

    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(seconds)
    return bool(answers and answers[0])


def _run_id(folder: Path) -> str:
    # The id lies in the run's folder: a resumed run finds it before its checkpoint is loaded.
    path = folder / "wandb_run_id.txt"
    kept = path.read_text(errors="replace").strip() if path.exists() else ""
    if not re.fullmatch(r"[\w-]{1,64}", kept, re.ASCII):
        kept = os.environ.get("WANDB_RUN_ID") or uuid.uuid4().hex[:8]  # `wandb agent` sets it
        _keep(path, kept)
    return kept


@rank_zero_only
def _keep(path: Path, run_id: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(run_id + "\n")
