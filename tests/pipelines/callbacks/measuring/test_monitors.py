"""EarlyStopping and ModelCheckpoint follow evaluations, wherever the epochs end."""

from pathlib import Path

import lightning
import pytest
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from datamodules.control import ControlReplay
from datamodules.settings import Sampling, Storage
from modules.agent import Agent, Rounds
from modules.errors import UserError
from modules.identity import IdentityModel
from modules.policies.q_learning import QLearning
from modules.policies.q_network import Network
from pipelines.callbacks.acting.collect import Collect
from pipelines.callbacks.measuring.evaluate import Evaluate
from pipelines.runs import checkpoint_files

SCORES = [5.0, 7.0, 6.0, 4.0, 8.0]


class Scored(Evaluate):
    """Evaluates every four updates, and finds one score after the other."""

    def __init__(self, every: int = 4) -> None:
        super().__init__(every=every)
        self.scores = iter(SCORES)

    def evaluate(self, run, episodes, final=False):
        return {} if final else {"evaluate/return": next(self.scores)}


def fit(folder: Path, *callbacks: lightning.Callback, evaluate: Evaluate | None = None, batches: int = 1):
    trainer = lightning.Trainer(
        default_root_dir=folder,
        max_steps=21,
        limit_train_batches=batches,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=any(isinstance(each, ModelCheckpoint) for each in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[evaluate or Scored(), *callbacks, Collect(prefill=20, steps_per_update=1)],
    )
    data = ControlReplay(id="CartPole-v1", sampling=Sampling(8, 2), storage=Storage(100), seed=5)
    trainer.fit(Agent(IdentityModel(), QLearning(Network(hidden=(8,))), "real", Rounds()), datamodule=data)
    return trainer


@pytest.mark.parametrize("batches", [1, 3, 100])
def test_patience_counts_evaluations(tmp_path, batches):
    """At 20, 24, ... steps, which updates 1, 5, 9, 13 and 17 have learned from."""
    assert fit(tmp_path, EarlyStopping("evaluate/return", mode="max", patience=2), batches=batches).global_step == 13
    patient = EarlyStopping("evaluate/return", mode="max", patience=3)
    assert fit(tmp_path / "patient", patient, batches=batches).global_step == 21


@pytest.mark.parametrize("batches", [1, 3, 100])
@pytest.mark.parametrize("every", [{}, {"every_n_train_steps": 2}])
def test_checkpoints_hold_the_weights_that_earned_the_score(tmp_path, batches, every):
    keep = ModelCheckpoint(tmp_path, "{step}", "evaluate/return", mode="max", save_top_k=3, **every)
    fit(tmp_path, keep, batches=batches)
    kept = {float(score): checkpoint_files.read(Path(path)) for path, score in keep.best_k_models.items()}
    assert {score: saved["global_step"] for score, saved in kept.items()} == {7.0: 5, 6.0: 9, 8.0: 17}
    assert keep.best_model_score == 8
    assert len(list(tmp_path.glob("*.ckpt"))) == 3


@pytest.mark.parametrize("kind", [EarlyStopping, ModelCheckpoint])
@pytest.mark.parametrize(
    ("monitor", "every", "words"),
    [
        ("evaluate/retrun", 4, "monitors evaluate/retrun.*nearest is evaluate/return"),
        ("evaluate/human_normalized", 4, "monitors evaluate/human_normalized"),
        ("evaluate/return", 0, "monitors evaluate/return.*only at the end: set every of Scored"),
    ],
)
def test_what_is_never_measured_is_refused_at_once(tmp_path, kind, monitor, every, words):
    with pytest.raises(UserError, match=f"{kind.__name__} {words}"):
        fit(tmp_path, kind(monitor=monitor), evaluate=Scored(every))
