"""A profiler that waits for the GPU, so that every part of the Trainer's loop is charged what it started."""

from __future__ import annotations

import torch
from lightning.pytorch.profilers import SimpleProfiler


class SyncedProfiler(SimpleProfiler):
    """Lightning's SimpleProfiler, with the device idle wherever a part begins or ends."""

    def start(self, action_name: str) -> None:
        """Wait, then start the clock."""
        _wait()
        super().start(action_name)

    def stop(self, action_name: str) -> None:
        """Wait, then stop the clock."""
        _wait()
        super().stop(action_name)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
