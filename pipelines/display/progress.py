"""Progress on the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text


class Rate(ProgressColumn):
    """Units per second."""

    def render(self, task: Task) -> Text:
        """Render the speed of the last seconds."""
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f} {task.fields['unit']}/s" if speed else "", style="progress.data.speed")


@contextmanager
def counter(title: str, total: float, unit: str, show: bool = True) -> Iterator[Callable[..., None]]:
    """Show a bar with rate and time left, and yield the function that advances it, and may note a metric beside it."""
    if not show:
        yield lambda amount, note="": None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        task = progress.add_task(title, total=int(total), unit=unit)
        yield lambda amount, note="": progress.update(task, advance=amount, description=f"{title} {note}".strip())
