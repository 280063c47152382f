"""The callback that plays the environments in Ray actors."""

from __future__ import annotations

import copy
import logging
import os
import signal
import socket
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning import Callback, LightningModule, Trainer

from datamodules.acting import Actor
from datamodules.ranks import generator
from modules.errors import UserError
from modules.learner import Learner
from pipelines.callbacks.run import Run

if TYPE_CHECKING:
    from pipelines.acting.ray_players import RayPlayers


class RayActors(Callback):
    """Plays the environments in Ray actors: `Collect` asks them for rows, and this process learns; logs policy_lag.

    Every actor has a part of the environments, a copy of the networks and its own core, on this machine or another
    one of the cluster. The number of real steps per update is fixed, and so are the weights that play them. The
    training data therefore does not depend on the speed of the actors. A new actor replaces one that dies, and plays
    the missing rows.

    Args:
        num_actors: number of Ray processes; at most the number of environments.
        max_policy_lag: largest number of updates between the weights that play a row and the weights that learn from
            it. 0 plays with the newest weights while learning waits; 1 or more plays while this process learns.
        address: host:port of a running cluster, or "auto" for the cluster that this machine belongs to. Null starts a
            cluster here, with a core for every actor, and ends it with the run.
    """

    def __init__(self, num_actors: int, max_policy_lag: int = 0, address: str | None = None) -> None:
        if num_actors < 1 or max_policy_lag < 0:
            raise UserError(f"Ray needs num_actors >= 1 and max_policy_lag >= 0: got {num_actors} and {max_policy_lag}")
        self.num_actors = num_actors
        self.max_policy_lag = max_policy_lag
        self.address = address
        self._connected = False
        self._players: RayPlayers | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Connect to the Ray cluster, or start one on this machine."""
        if stage != "fit":
            return
        played = trainer.datamodule.envs  # type: ignore[attr-defined]
        envs = played.training + played.validation
        if self.num_actors > envs:
            raise UserError(f"{self.num_actors} Ray actors are too many: there are {envs} environments to play")
        if trainer.world_size > 1:
            raise UserError(f"Ray actors play for one process: set trainer.devices to 1, not {trainer.world_size}")
        connect(self.address, self.num_actors)
        self._connected = True

    def copy(self, learner: Learner) -> Learner:
        """Return a copy of the learner on the CPU, which the actors use."""
        return copy.deepcopy(learner).cpu()

    def players(
        self,
        run: Run,
        learner: Learner,
        actors: list[dict[str, Actor]],
        states: list[dict[str, Any]] | None,
    ) -> RayPlayers:
        """Start the Ray actors.

        Args:
            run: run that learns.
            learner: copy of the run's learner.
            actors: actors by name, one dict for each Ray actor; they use the copy.
            states: states of the actors, if running episodes continue; None starts new episodes.
        """
        from pipelines.acting.ray_players import PlayerSpec, RayPlayers

        data, store = run.data, run.store
        seeds = generator(run.rank, "environment", data.seed).integers(2**31, size=self.num_actors)
        envs = [len(part) for part in np.array_split(np.arange(store.num_envs), self.num_actors)]
        specs = [
            PlayerSpec(learner, each, data, num, int(seed), store.rows)
            for each, num, seed in zip(actors, envs, seeds, strict=True)
        ]
        self._players = players = RayPlayers(data, run.learner, specs, self.max_policy_lag, states)
        data.play_by(players)
        return players

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Log how many updates the actors' weights are behind."""
        if self._players is not None and Run(trainer).logs_after(trainer.global_step):
            pl_module.log("policy_lag", float(self._players.policy_lag), batch_size=1)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """End the Ray actors after an error."""
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """End the Ray actors, and the cluster if this run started it."""
        if self._connected:
            import ray

            if self._players is not None:
                self._players.close()
            ray.shutdown()
            self._connected, self._players = False, None


def connect(address: str | None, num_cpus: int) -> None:
    """Connect to a cluster, or start one on this machine with `num_cpus` cores.

    Raises:
        UserError: Ray is not installed, or there is no cluster at the address.
    """
    try:
        import ray
    except ImportError:
        raise UserError('Ray is not installed: pip install -c constraints.txt -e ".[ray]"') from None
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    own: dict[str, Any] = {"num_cpus": num_cpus, "include_dashboard": False} if address is None else {}
    handler = signal.getsignal(signal.SIGTERM)
    try:
        if address not in (None, "auto"):
            host, _, port = address.rpartition(":")
            socket.create_connection((host, int(port)), timeout=5).close()  # Ray itself would try for minutes
        ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **own)
    except (OSError, ValueError) as error:
        raise UserError(f"no Ray cluster at {address}: {' '.join(str(error).split())[:200]}") from None
    finally:
        # Ray replaces the SIGTERM handler that makes a run write its last checkpoint.
        signal.signal(signal.SIGTERM, handler)
