"""Loggers that continue after a resume and work without a network connection."""

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
    """Writes metrics.csv into the run's folder; a resumed run appends to the file.

    Args:
        save_dir: folder of metrics.csv; null takes the run's folder.
        flush_logs_every_n_steps: number of rows to keep in memory before writing them.
    """

    def __init__(self, save_dir: Path | None = None, flush_logs_every_n_steps: int = 100) -> None:
        super().__init__(save_dir or ".", name="", version="", flush_logs_every_n_steps=flush_logs_every_n_steps)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """Return the writer of metrics.csv."""
        if self._experiment is None:
            path = Path(self.log_dir) / "metrics.csv"
            header: list[str] | None = []
            if path.exists() and (header := _header(path)) is None:
                rank_zero_warn(
                    f"{path} is no table of metrics: it is renamed to metrics_damaged.csv, and a new table begins"
                )
                path.rename(path.with_stem("metrics_damaged"))
            if header:
                _drop_cut_line(path)
            self._experiment = _Writer(self.log_dir)
            self._experiment.metrics_keys = header or []
        return self._experiment


class _Writer(ExperimentWriter):
    """Appends to an existing file, and never loses rows that the file already holds."""

    def _check_log_dir_exists(self) -> None:
        """Do nothing, where Lightning would delete an existing file."""

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        path = Path(self.metrics_file_path)
        table = io.StringIO()
        with path.open(newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(table, fieldnames)
            writer.writeheader()
            writer.writerows(csv.DictReader(file))
        replace_text(path, table.getvalue())


def _drop_cut_line(path: Path) -> None:
    """Remove an unfinished last line, because an appended row would become part of it."""
    with path.open("r+b") as file:
        file.truncate(file.read().rfind(b"\n") + 1)


def _header(path: Path) -> list[str] | None:
    """Return the columns of metrics.csv, or None if the file is damaged beyond an unfinished last line."""
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
    """Logs to Weights & Biases, offline by default; a resumed run keeps its id.

    An online run warns and logs offline if W&B cannot be reached. A run that `wandb agent` starts is online, because
    its sweep needs the metrics.

    Args:
        mode: "offline" (upload later with `wandb sync`), "online" or "disabled".
        project: project in W&B.
        entity: user or team in W&B; null takes W&B's default.
        name: name of the run in W&B; null lets W&B choose.
        tags: tags of the run in W&B.
        save_dir: folder of the logs; null takes the run's folder.
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
            rank_zero_warn("W&B cannot be reached: the run continues offline, send it later with `wandb sync`")
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
        # Lightning passes an argument that W&B has removed: W&B warns on every run, even if the argument is None.
        self._wandb_init.pop("anonymous", None)


def reachable(seconds: float = PROBE_SECONDS) -> bool:
    """Return whether W&B's server accepts a connection in time.

    A thread connects, because the look-up of a host name has no time-out.
    """
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
    # The run's folder stores the id, because a resumed run needs it before it loads its checkpoint.
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
