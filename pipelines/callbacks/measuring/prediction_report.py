"""The callback that measures prediction errors of a world model, as a table, a CSV file and a plot."""

from __future__ import annotations

import csv
import math
from pathlib import Path

from lightning import Callback, LightningModule, Trainer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from modules.errors import UserError
from pipelines.callbacks.run import Run
from pipelines.dreams.metrics import COLUMNS, dream, per_horizon


class PredictionReport(Callback):
    """Dreams held-out windows and compares them with reality; the baseline copies the last frame.

    Rewards and ends are judged by the probabilities that were dreamed for them, over all steps up to the horizon.

    The callback runs after every validation and at the end of `validate` and `test`. It writes predictions.csv and
    predictions.png to the run's folder. It logs the horizons, and prints them when the run ends.

    Args:
        horizons: dreamed steps that the table shows; the CSV file has every step up to the last one.
        num_windows: number of held-out windows, at most the windows of a whole validation.
        context: rows that the model observes before it dreams.
    """

    def __init__(
        self, horizons: tuple[int, ...] = (1, 5, 10, 15, 25, 50), num_windows: int = 64, context: int = 4
    ) -> None:
        if not horizons or min(horizons) < 1 or num_windows < 1 or context < 1:
            raise UserError("prediction_report needs horizons, num_windows and context of at least 1")
        self.horizons = tuple(sorted(horizons))
        self.num_windows = num_windows
        self.context = context
        self.rows: list[dict[str, float]] = []

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure how far dreams can be trusted, and log the horizons of the table."""
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        run = Run(trainer)
        self.rows = self.measure(run)
        shown = {
            f"horizon_{row['horizon']}/{name}": row[name]
            for row in self.rows
            if row["horizon"] in self.horizons
            for name in COLUMNS[2:]
            if not math.isnan(row[name])
        }
        run.log(shown)
        if run.command == "validate":
            self.finish(run)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure how far dreams can be trusted, and print the table."""
        if trainer.is_global_zero:
            self.rows = self.measure(Run(trainer))
            self.finish(Run(trainer))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the table of the last validation."""
        if self.rows and trainer.is_global_zero:
            self.finish(Run(trainer))

    def measure(self, run: Run) -> list[dict[str, float]]:
        """Return the errors at every horizon up to the last one of the table."""
        model = run.model
        model.require("step", "decode", by="prediction_report")
        if model.spec is None or len(model.spec.observation_shape) != 3:
            raise UserError(f"prediction_report measures pictures: {type(model).__name__} predicts vectors")
        length = self.context + self.horizons[-1]
        batch = run.data.validation_windows(length, self.num_windows)
        with run.precision():
            dreams = dream(model, batch.to(run.learner.device), self.context)
        return per_horizon(dreams, ssim_at=self.horizons)

    def finish(self, run: Run) -> None:
        """Write the files and print the table."""
        folder = run.folder
        with (folder / "predictions.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, self.rows[0].keys())
            writer.writeheader()
            writer.writerows(self.rows)
        plot(self.rows, folder / "predictions.png")
        for logger in run.wandb():
            logger.log_table("predictions", columns=list(self.rows[0]), data=[list(r.values()) for r in self.rows])
        console = Console()
        console.print(self.table())
        console.print(self.foresight_table())
        console.print(f"every horizon: {folder / 'predictions.csv'}, {folder / 'predictions.png'}", soft_wrap=True)

    def table(self) -> Table:
        """Return the table of `horizons`."""
        table = Table(
            title="dream|copy of the last frame, on held-out episodes",
            caption="changed, either: 1000 x squared error where reality changed, or where reality or the dream did",
            box=SIMPLE_HEAD,
            pad_edge=False,
        )
        for title in ("step", "PSNR dB", "SSIM", "changed", "either"):
            table.add_column(title, justify="right", no_wrap=True)
        for row in self.rows:
            if row["horizon"] in self.horizons:
                table.add_row(
                    str(row["horizon"]),
                    *(
                        f"{scale * row[name]:.{digits}f}|{scale * row[f'copy_{name}']:.{digits}f}"
                        for name, scale, digits in (
                            ("psnr", 1, 1),
                            ("ssim", 1, 3),
                            ("changed", 1e3, 1),
                            ("either", 1e3, 1),
                        )
                    ),
                )
        return table

    def foresight_table(self) -> Table:
        """Return the table of rewards and ends at `horizons`."""
        table = Table(
            title="rewards and ends foreseen, over all steps up to the horizon",
            caption="AP: average precision|frequency of events, which is that of chance; P: mean probability at "
            "events|elsewhere; ECE: expected calibration error; sum: of dreamed|real rewards",
            box=SIMPLE_HEAD,
            pad_edge=False,
        )
        for title in ("step", "event", "number", "AUC", "AP", "P", "ECE", "sum"):
            table.add_column(title, justify="right", no_wrap=True)
        for row in self.rows:
            if row["horizon"] in self.horizons:
                sums = f"{row['reward_sum']:.1f}|{row['reward_real_sum']:.1f}"
                for event, total in (("reward", sums), ("termination", "")):
                    auc, ap, base, p_event, p_other, ece = (
                        shown(row[f"{event}_{name}"]) for name in ("auc", "ap", "base", "p_event", "p_other", "ece")
                    )
                    pairs = (auc, f"{ap}|{base}", f"{p_event}|{p_other}", ece)
                    number = f"{row[f'{event}s']:.0f}"
                    label = "reward" if event == "reward" else "end"
                    table.add_row(str(row["horizon"]) if label == "reward" else "", label, number, *pairs, total)
        return table


def shown(value: float) -> str:
    """Format a number between 0 and 1."""
    return "-" if math.isnan(value) else f"{value:.3f}"


def plot(rows: list[dict[str, float]], path: Path) -> None:
    """Plot errors, likeness, and how well rewards and ends are foreseen, against the horizon."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6.2), layout="constrained")
    (changed, either, psnr), (ranks, probabilities, sums) = figure.subplots(2, 3)
    horizons = [row["horizon"] for row in rows]
    panels = ((changed, "changed", "MSE where reality changed"), (either, "either", "MSE where either changed"))
    for axes, name, title in (*panels, (psnr, "psnr", "PSNR, dB")):
        axes.plot(horizons, [row[name] for row in rows], label="dream")
        axes.plot(horizons, [row[f"copy_{name}"] for row in rows], "--", label="copy of the last frame")
        axes.set(title=title)
        axes.set_ylim(bottom=None if name == "psnr" else 0)
    for event, label, color in (("reward", "rewards", "C0"), ("termination", "ends", "C1")):
        ranks.plot(horizons, [row[f"{event}_auc"] for row in rows], color=color, label=label)
        for name, style, where in (("p_event", "-", "at"), ("p_other", ":", "without")):
            values = [row[f"{event}_{name}"] for row in rows]
            probabilities.plot(horizons, values, style, color=color, label=f"{where} {label}")
    ranks.axhline(0.5, color="grey", linestyle="--", label="chance")
    ranks.set(title="AUC of rewards and ends", ylim=(0, 1.02))
    probabilities.set(title="mean probability", ylim=(0, 1.02))
    sums.plot(horizons, [row["reward_sum"] for row in rows], label="dreamed")
    sums.plot(horizons, [row["reward_real_sum"] for row in rows], "--", label="real")
    sums.set(title="sum of rewards")
    for axes in figure.axes:
        axes.set_xlabel("steps ahead")
        axes.grid(alpha=0.3)
    for axes in (changed, ranks, probabilities, sums):
        axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)
