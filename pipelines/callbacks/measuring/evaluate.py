"""How well the policy really plays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from datamodules.ranks import generator, run_seed
from modules.agent import Agent, policy_of, world_model
from modules.errors import UserError, check_range
from pipelines.acting.actors import SearchActor
from pipelines.evaluation.episodes import evaluate, tell
from pipelines.evaluation.results import FILE, Evaluation, append, human_normalized, read
from pipelines.search.search import Search


class Evaluate(Callback):
    """Plays whole episodes under the evaluation variant of the protocol, and keeps every return with its seed.

    It evaluates at the end of rounds, with the real steps that the policy has learned from by then. What it measures
    lies in the run's evaluations.jsonl, which `dreamcade report` reads.

    Args:
        every: real steps, of all ranks together, between evaluations; 0 evaluates at the end alone.
        episodes: per evaluation.
        final_episodes: of the one at the end of training.
        greedy: play the likeliest action; false draws as in training.
        epsilon: probability of a random action instead.
        search: plan every move, and play the best one.
        max_steps: agent steps after which an episode is given up; null plays it to its end.
    """

    runs_before = ("Collect",)

    def __init__(
        self,
        every: int = 0,
        episodes: int = 10,
        final_episodes: int = 30,
        greedy: bool = True,
        epsilon: float = 0.0,
        search: Search | None = None,
        max_steps: int | None = None,
    ) -> None:
        if every < 0 or min(episodes, final_episodes) < 1 or not 0 <= epsilon <= 1:
            raise UserError(
                "evaluate needs every of at least 0, episodes of at least 1 and epsilon from 0 to 1: "
                f"got {every}, {min(episodes, final_episodes)} and {epsilon}"
            )
        check_range("Evaluate.max_steps", max_steps, 1)
        self.every = every
        self.episodes = episodes
        self.final_episodes = final_episodes
        self.greedy = greedy
        self.epsilon = epsilon
        self.search = search
        self.max_steps = max_steps
        self.evaluated_at = 0
        self.figures: dict[str, float] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that somebody can play, and plan if need be."""
        policy = policy_of(pl_module)
        if self.search is not None:
            SearchActor(world_model(pl_module), policy, self.search, generator(0, "evaluation"))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let a run that goes on monitor what was measured before."""
        self._show(trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Evaluate where a round is over and enough real steps were taken since the last time."""
        env_steps = trainer.datamodule.real_steps * trainer.world_size  # type: ignore[attr-defined]
        over = not isinstance(pl_module, Agent) or pl_module.rounds.ends(trainer.global_step)
        if self.every and over and env_steps // self.every > self.evaluated_at // self.every:
            self.evaluated_at = env_steps
            self.evaluate(trainer, pl_module, self.episodes)
            self._show(trainer)

    def _show(self, trainer: Trainer) -> None:
        """Let callbacks of every rank, such as ModelCheckpoint, monitor what was measured last."""
        self.figures = trainer.strategy.broadcast(self.figures)
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in self.figures.items()})

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate what training made."""
        self.evaluate(trainer, pl_module, self.final_episodes, final=True)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate a run that was killed in its last evaluation: there is no update left that would lead to it."""
        path = Path(trainer.default_root_dir) / FILE
        played = read(path.parent) if path.exists() else []
        done = any(found.final and found.updates == trainer.global_step for found in played)
        if trainer.global_step == trainer.max_steps and not done:
            self.evaluate(trainer, pl_module, self.final_episodes, final=True)

    def evaluate(self, trainer: Trainer, module: LightningModule, episodes: int, final: bool = False) -> None:
        """Play, write the evaluation down and log it."""
        if not trainer.is_global_zero:
            return
        evaluation = self.play(trainer, module, episodes, final, search=self.search)
        normalized = human_normalized(evaluation.game, evaluation.score)
        figures = {"evaluate/return": evaluation.score}
        if normalized is not None:
            figures["evaluate/human_normalized"] = normalized
        for logger in trainer.loggers:
            logger.log_metrics(figures, step=trainer.global_step)
        self.figures = figures
        if final:
            tell(evaluation, Path(trainer.default_root_dir))

    def play(self, trainer: Trainer, module: LightningModule, episodes: int, final: bool, **options: Any) -> Evaluation:
        """Play episodes, the same ones whoever plays at a moment of the run, and write them down.

        Args:
            trainer: of the run.
            module: who plays.
            episodes: to play.
            final: at the end of training.
            **options: of `evaluate`, such as search.
        """
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        folder = Path(trainer.default_root_dir)
        with trainer.precision_plugin.forward_context():
            evaluation = evaluate(
                module,
                data,
                episodes=episodes,
                seed=int(generator(0, f"evaluation {data.env_steps}").integers(2**31)),
                greedy=self.greedy,
                epsilon=self.epsilon,
                max_steps=self.max_steps,
                show=final,
                env_steps=data.real_steps * trainer.world_size,
                updates=trainer.global_step,
                experiment=folder.parent.name if folder.name.isdigit() else folder.name,
                run_seed=run_seed(),
                final=final,
                checkpoint="checkpoints/last.ckpt" if final else None,
                **options,
            )
        append(folder, evaluation)
        return evaluation

    def state_dict(self) -> dict[str, Any]:
        """Remember when it evaluated last."""
        return {"evaluated_at": self.evaluated_at, "figures": self.figures}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.evaluated_at = state_dict["evaluated_at"]
        self.figures = state_dict.get("figures", {})
