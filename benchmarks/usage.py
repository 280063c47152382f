"""How busy the GPU is, and how much of its memory is in use, while something runs."""

from __future__ import annotations

import subprocess
import threading
from typing import Any

import numpy as np

QUERY = ["nvidia-smi", "--query-gpu=utilization.gpu,memory.used", "--format=csv,noheader,nounits"]


class Usage:
    """Asks nvidia-smi every other second about the first GPU, until `stop`; without a GPU nothing is found."""

    def __init__(self) -> None:
        self.samples: list[tuple[float, float]] = []
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def _watch(self) -> None:
        while not self.over.wait(2):
            try:
                first = subprocess.check_output(QUERY, text=True).splitlines()[0]
                percent, mebibytes = map(float, first.split(","))
                self.samples.append((percent, mebibytes))
            except (OSError, subprocess.CalledProcessError, ValueError, IndexError):
                return

    def stop(self) -> dict[str, Any]:
        """Return the mean use in percent and the largest memory in GiB, None where nothing was found."""
        self.over.set()
        if not self.samples:
            return {"gpu_use_percent": None, "gpu_gib": None}
        percent, mebibytes = np.array(self.samples).T
        return {"gpu_use_percent": round(float(percent.mean()), 1), "gpu_gib": round(float(mebibytes.max()) / 1024, 1)}
