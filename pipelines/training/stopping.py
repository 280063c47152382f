"""SIGTERM and Ctrl-C, from the moment that a run begins to play."""

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
    """Ends a run of one process in good order: it finishes what it is at, and `Guard` leaves a checkpoint.

    Lightning listens to SIGTERM only once the first rows were played, and takes Ctrl-C for the end of everything. Here
    both are heard from the start, within a `with` statement; Ctrl-C a second time ends the run at once.

    Raises:
        KeyboardInterrupt: at the end of the statement, from the SIGTERMException, where it was Ctrl-C.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.told = self.interrupted = False
        self.before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> None:
        """Listen."""
        if self.trainer.world_size == 1 and threading.current_thread() is threading.main_thread():
            self.before[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._terminate)
            if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell's background jobs ignore it
                self.before[signal.SIGINT] = signal.signal(signal.SIGINT, self._interrupt)

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        """Listen no longer, and tell what ended the run."""
        for number, handler in self.before.items():
            signal.signal(number, handler)
        if self.interrupted and isinstance(error, SIGTERMException):
            raise KeyboardInterrupt from error
        if self.interrupted and isinstance(error, SystemExit):  # what Lightning makes of the second Ctrl-C
            raise KeyboardInterrupt from None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End a run that was told to before Lightning listened, and not while it played."""
        if self.told:
            raise SIGTERMException

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        self.told = True
        self.trainer._signal_connector.received_sigterm = True  # there is no public way, and who plays looks there

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self.interrupted = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        print("\ndreamcade: stopping after this update; Ctrl-C again stops at once", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGTERM)
