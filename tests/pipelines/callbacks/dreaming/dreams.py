"""Agents that dream of DotWorld, in a model that knows it."""

import lightning
import torch

from modules.agent import Agent
from modules.optimization import Optimization
from modules.policies.actor_critic import Reinforce
from modules.rounds import Rounds
from modules.world_model import Loss, Step
from pipelines.callbacks.dreaming.dreaming import Horizon
from pipelines.callbacks.dreaming.mbpo import Mbpo
from tests.fakes import DotWorld, PerfectModel

NUM_ENVS, ROWS, EXTRAS = 3, 80, ("log_prob", "value")
FIXED = Horizon(3, 3)


class Known(PerfectModel):
    """DotWorld by heart; every step is survived with a probability of 0.8 at most. Its loss looks at no row."""

    def loss(self, batch):
        loss = (self.one - 2) ** 2
        return Loss(loss, {"loss": loss.detach()})

    def step(self, state, action):
        after, reward, continuation = super().step(state, action)
        return Step(after, reward, 0.8 * continuation)


class Numbered(Known):
    """Its states are the numbers of row and environment that Counting left; it keeps the rows it was shown."""

    def encode(self, batch):
        self.shown = batch
        return torch.stack([batch.extras["log_prob"], batch.extras["value"]], dim=-1).long()


class Generous(DotWorld):
    """Pays for standing still what DotWorld pays for walls, and ends at other times."""

    def step(self, actions):
        after = super().step(actions)
        return after._replace(reward=3 - after.reward)


class DebugLimits(DotWorld):
    """Episodes of one step, in all environments at once."""

    def __init__(self, num_envs, limit):
        super().__init__(num_envs, limit=1)


class Notes(lightning.Callback):
    """Notes every update's dreams, and whether they were launched for it. It comes after the callback that dreams."""

    def __init__(self, dreaming) -> None:
        self.dreaming, self.dreams, self.launched, self.steps = dreaming, [], [], []

    def on_train_batch_start(self, trainer, agent, batch, batch_idx):
        steps, dream = self.dreaming.counts["dreamed_steps"], batch.get("dream")
        self.launched.append(steps > (self.steps[-1] if self.steps else 0))
        self.steps.append(steps)
        self.dreams.append(dream)
        if dream is not None:
            logits, _ = agent.policy(agent.world_model.features(dream.state.flatten(0, 1)))
            log_prob = logits.log_softmax(1).gather(1, dream.action.flatten()[:, None]).view(dream.shape)
            self.own = torch.allclose(log_prob[:, :-1], dream.extras["log_prob"][:, :-1], atol=1e-6)


def agent(learns_from="both", rounds=None, model=None, **options) -> Agent:
    torch.manual_seed(1)
    return Agent(
        model or Known(),
        Reinforce(hidden=[8], channels=[4, 4, 4], optimization=Optimization(1e-2), **options),
        learns_from,
        rounds or Rounds(),
    )


def fit(module, data, updates, *callbacks, **options):
    trainer = lightning.Trainer(
        max_steps=updates,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        callbacks=list(callbacks),
        **options,
    )
    trainer.fit(module, datamodule=data)
    return trainer


def dream(data, updates, dreaming, *callbacks, **options) -> tuple[Notes, lightning.Trainer]:
    notes = Notes(dreaming)
    default = "dream" if isinstance(dreaming, Mbpo) else "both"
    module = agent(**{"learns_from": default} | options)
    return notes, fit(module, data, updates, dreaming, notes, *callbacks)
