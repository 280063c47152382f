"""Pictures of a latent space, on DotWorld."""

import pytest
import torch

from modules.errors import UserError
from pipelines.callbacks.measuring.latent_pictures import (
    LatentPictures,
    reconstructions,
    samples,
    sheet,
    traversals,
    vae_of,
)
from tests.fakes import PerfectModel
from tests.modules.latents.worlds import mdn_rnn, vae, windows


@pytest.fixture(scope="module")
def batch(tmp_path_factory):
    return windows(tmp_path_factory.mktemp("rows") / "store", num_windows=4, length=12)


def test_reconstructions_stand_between_frames_and_errors(batch):
    model = vae()
    real, painted, error = reconstructions(model, batch, 5)
    frames = batch.observation[~batch.is_last].float() / 255
    assert torch.equal(real[0], frames[0])
    assert torch.equal(real[-1], frames[-1])
    torch.testing.assert_close(painted, model.paint(model.infer(real)[0]))
    assert torch.equal(error, (real - painted).abs())
    assert model.training, "it is left as it was"


def test_along_a_traversal_one_number_changes(batch, monkeypatch):
    model, seen = vae(), []
    monkeypatch.setattr(type(model), "paint", lambda self, z: seen.append(z) or z[:, :1, None, None])
    assert traversals(model, batch, 4, 7, 2.0).shape == (4, 7, 1, 1, 1)
    walks = seen[0].unflatten(0, (4, 7))
    changed = (walks != walks[:, :1]).any(dim=1)
    assert (changed.sum(dim=1) == 1).all()
    numbers = changed.float().argmax(dim=1)
    assert len(numbers.unique()) == 4
    for row, number in enumerate(numbers):
        torch.testing.assert_close(walks[row, :, number], torch.linspace(-2, 2, 7))


def test_a_sheet_is_rows_and_columns():
    pictures = torch.rand(2, 3, 1, 4, 5)
    laid = sheet(pictures)
    assert laid.shape == (8, 15, 3)
    expected = (pictures[1, 2, 0] * 255).round().byte().numpy()
    assert (laid[4:, 10:, 0] == expected).all()
    assert samples(vae(), 3).shape == (3, 3, 1, 12, 12)


def test_dreams_at_every_temperature_stand_below_reality(batch):
    model = mdn_rnn(hidden_size=8, temperature=0.7)
    callback = LatentPictures(temperatures=(0.0, 1.0, 1.3), horizons=(1, 2, 5, 500), context=4)
    rows = callback.dreams(model, batch)
    assert rows.shape == (4, 3, 1, 12, 12)
    assert model.temperature == 0.7
    assert not torch.equal(rows[1], rows[3])


def test_it_needs_a_vae():
    assert vae_of(mdn_rnn()) is not None
    with pytest.raises(UserError, match="PerfectModel has none"):
        vae_of(PerfectModel())


@pytest.mark.parametrize(
    ("options", "words"),
    [({"num_frames": 0}, "at least 1"), ({"span": 0.0}, "span"), ({"temperatures": (-0.5,)}, "at least 0")],
    ids=str,
)
def test_impossible_numbers(options, words):
    with pytest.raises(UserError, match=words):
        LatentPictures(**options)
