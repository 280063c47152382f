"""Shows progress on the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text


class Rate(ProgressColumn):
    """Column of a progress bar with the speed in units per second."""

    def render(self, task: Task) -> Text:
        """Return the speed of the last seconds as text."""
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f} {task.fields['unit']}/s" if speed else "", style="progress.data.speed")


@contextmanager
def counter(title: str, total: float, unit: str, show: bool = True) -> Iterator[Callable[..., None]]:
    """Show a progress bar with rate and time left, and yield a function that advances the bar.

    The function takes the amount and an optional note, such as a metric, to show beside the title.
    """
    if not show:
        yield lambda amount, note="": None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        task = progress.add_task(title, total=int(total), unit=unit)
        yield lambda amount, note="": progress.update(task, advance=amount, description=f"{title} {note}".strip())
