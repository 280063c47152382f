"""The callback that evaluates the policy in the real environment."""

from __future__ import annotations

from typing import Any, ClassVar

from lightning import Callback, LightningModule, Trainer

from datamodules.ranks import generator, run_seed
from modules.errors import UserError, check_range
from pipelines.acting.play import Play, PolicyPlay
from pipelines.callbacks.measuring.monitors import Monitors
from pipelines.callbacks.run import Run
from pipelines.evaluation.episodes import evaluate, tell
from pipelines.evaluation.results import FILE, Evaluation, append, human_normalized, read


class Evaluate(Callback):
    """Plays whole episodes under the evaluation variant of the protocol, and keeps every return with its seed.

    The callback evaluates at the end of a round. It records the real steps that the policy has learned from. It
    writes the results to the run's evaluations.jsonl, which `dreamcade report` reads. EarlyStopping and ModelCheckpoint
    callbacks that monitor a figure of it look after every evaluation but the final one.

    Args:
        every: real steps of all ranks together between evaluations; 0 evaluates only at the end.
        episodes: number of episodes per evaluation.
        final_episodes: number of episodes of the evaluation at the end of training.
        actor: actor that is evaluated; null takes the trained policy.
        greedy: play the best action without noise; false draws actions as in training.
        max_steps: agent steps after which an episode is stopped as unfinished; null plays it to its end.
    """

    runs_before = ("Collect", "Resets")

    debug: ClassVar[dict[str, Any]] = {"episodes": 2, "final_episodes": 2, "max_steps": 20}

    def __init__(
        self,
        every: int = 0,
        episodes: int = 10,
        final_episodes: int = 30,
        actor: Play | None = None,
        greedy: bool = True,
        max_steps: int | None = None,
    ) -> None:
        if every < 0 or min(episodes, final_episodes) < 1:
            raise UserError(
                "evaluate needs every of at least 0 and episodes of at least 1: "
                f"got {every} and {min(episodes, final_episodes)}"
            )
        check_range("Evaluate.max_steps", max_steps, 1)
        self.every = every
        self.episodes = episodes
        self.final_episodes = final_episodes
        self.actor = actor
        self.greedy = greedy
        self.max_steps = max_steps
        self.evaluated_at = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that the actor fits the learner and the world, and that what monitors the score can see it."""
        run = Run(trainer)
        (self.actor or PolicyPlay()).check(run.learner, run.data)
        self.monitors = Monitors(trainer, self.names(run))
        if self.every == 0 and (following := self.monitors.callbacks):
            raise UserError(
                f"{type(following[0]).__name__} monitors {following[0].monitor}, which is measured only at the end: "
                f"set every of {type(self).__name__}"
            )

    def names(self, run: Run) -> list[str]:
        """Return the names of the figures that callbacks can monitor."""
        known = human_normalized(run.data.name, 0.0) is not None
        return ["evaluate/return", *(["evaluate/human_normalized"] if known else [])]

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Play evaluation episodes if a round ended and `every` real steps have passed since the last evaluation."""
        run = Run(trainer)
        over = run.learner.rounds.ends(run.updates)
        if self.every and over and run.real_steps // self.every > self.evaluated_at // self.every:
            self.evaluated_at = run.real_steps
            self.monitors.show(trainer, trainer.strategy.broadcast(self.evaluate(run, self.episodes)))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Play the final evaluation."""
        self.evaluate(Run(trainer), self.final_episodes, final=True)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Play the final evaluation of a run that was killed during it: such a run has no update left."""
        run = Run(trainer)
        played = read(run.folder) if (run.folder / FILE).exists() else []
        if not any(found.final and found.updates == run.updates for found in played):
            self.evaluate(run, self.final_episodes, final=True)

    def evaluate(self, run: Run, episodes: int, final: bool = False) -> dict[str, float]:
        """Play the episodes, write and log the evaluation, and return its figures; other ranks than the first wait."""
        if not run.is_first:
            return {}
        evaluation = self.play(run, episodes, final, actor=self.actor)
        normalized = human_normalized(evaluation.game, evaluation.score)
        figures = {"evaluate/return": evaluation.score}
        if normalized is not None:
            figures["evaluate/human_normalized"] = normalized
        run.log(figures)
        if final:
            tell(evaluation, run.folder)
        return figures

    def play(self, run: Run, episodes: int, final: bool, **options: Any) -> Evaluation:
        """Play episodes and write them to evaluations.jsonl; at one moment of the run all actors get the same seed.

        Args:
            run: run whose learner plays.
            episodes: number of episodes.
            final: mark the evaluation as the one at the end of training.
            **options: further arguments of `evaluate`, such as actor.
        """
        data, folder = run.data, run.folder
        with run.precision():
            evaluation = evaluate(
                run.learner,
                data,
                episodes=episodes,
                seed=int(generator(0, f"evaluation {data.env_steps}").integers(2**31)),
                greedy=self.greedy,
                max_steps=self.max_steps,
                show=final,
                env_steps=run.real_steps,
                updates=run.updates,
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
        return {"evaluated_at": self.evaluated_at}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.evaluated_at = state_dict["evaluated_at"]
