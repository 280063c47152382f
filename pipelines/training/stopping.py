"""Handles SIGTERM and Ctrl-C from the first step that a run plays."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException


class Stopping(Callback):
    """Stops a run of one process gracefully: the run finishes its update, and `Guard` writes a checkpoint.

    Lightning handles SIGTERM only after the first rows are played, and ends at once on Ctrl-C. This context manager
    handles both from the start. A second Ctrl-C ends the run at once.

    Raises:
        KeyboardInterrupt: the run was stopped by Ctrl-C; raised at the end of the `with` statement.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.told = self.interrupted = False
        self.before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> None:
        """Install the signal handlers."""
        if self.trainer.world_size == 1 and threading.current_thread() is threading.main_thread():
            self.before[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._terminate)
            if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell's background jobs ignore it
                self.before[signal.SIGINT] = signal.signal(signal.SIGINT, self._interrupt)

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        """Restore the signal handlers, and raise KeyboardInterrupt if Ctrl-C ended the run."""
        for number, handler in self.before.items():
            signal.signal(number, handler)
        if self.interrupted and isinstance(error, SIGTERMException):
            raise KeyboardInterrupt from error
        if self.interrupted and isinstance(error, SystemExit):  # Lightning raises it on the second Ctrl-C
            raise KeyboardInterrupt from None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End a run that received SIGTERM before Lightning installed its handlers."""
        if self.told:
            raise SIGTERMException

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        self.told = True
        self.trainer._signal_connector.received_sigterm = True  # there is no public way; the play loop checks it

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self.interrupted = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        print("\ndreamcade: stopping after this update; Ctrl-C again stops at once", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGTERM)
