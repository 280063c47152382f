"""The VAE, by the paper's shapes, known divergences, and on DotWorld."""

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from modules.errors import UserError
from modules.latents.vae import VAE, Spread
from modules.optimization import Optimization
from modules.world_model import Spec
from tests.modules.latents.worlds import SINGLE, learn, vae, windows


@pytest.fixture(scope="module")
def batch(tmp_path_factory):
    return windows(tmp_path_factory.mktemp("rows") / "store", num_windows=64)


def test_the_default_is_the_papers():
    """Ha & Schmidhuber 2018, appendix A.1, figure of the VAE."""
    model = VAE()
    model.build_from(Spec((3, 64, 64), 1, 3))
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters() if p.ndim > 1}
    assert list(shapes.values()) == [
        *((32, 3, 4, 4), (64, 32, 4, 4), (128, 64, 4, 4), (256, 128, 4, 4), (64, 1024)),
        *((1024, 32), (1024, 128, 5, 5), (128, 64, 5, 5), (64, 32, 6, 6), (32, 3, 6, 6)),
    ]
    assert (model.kl_tolerance, model.optimization.lr, model.state_shape) == (0.5, 1e-4, (32,))


def test_a_spread_pixel_is_a_transposed_convolution():
    plain = torch.nn.ConvTranspose2d(6, 4, (5, 3), stride=2)
    quick = Spread(6, 4, (5, 3), stride=2)  # type: ignore[arg-type]
    quick.load_state_dict(plain.state_dict())
    pixel = torch.randn(7, 6, 1, 1)
    torch.testing.assert_close(quick(pixel), plain(pixel))


@pytest.mark.parametrize("shape", [(1, 42, 42), (1, 84, 84), (3, 210, 160), (1, 12, 12), (2, 5, 3)], ids=str)
def test_pictures_of_any_size(shape):
    model = VAE(channels=(4, 4, 4))
    model.build_from(Spec(shape, 1, 3))
    picture = model.decode(model.initial(2))
    assert picture.shape == (2, *shape)
    assert (picture.min() >= 0) & (picture.max() <= 1)
    assert model.infer(picture)[0].shape == (2, 32)


def test_the_loss_is_the_papers(batch):
    """Squared error summed over the picture, the divergence no lower than its floor; closing frames do not count."""
    model = vae(kl_tolerance=0.0).eval()
    _, parts, states, _ = model.loss(batch)
    frames = batch.observation[~batch.is_last].float() / 255
    mean, log_std = model.infer(frames)
    posterior = Normal(mean, log_std.exp())
    kl = kl_divergence(posterior, Normal(0.0, 1.0)).sum(dim=1).mean()
    torch.testing.assert_close(parts["kl"], kl)
    torch.testing.assert_close(parts["reconstruction"], parts["mse"] * 144, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(parts["loss"], parts["reconstruction"] + kl)
    assert states is None
    model.kl_tolerance = 100.0
    parts = model.loss(batch).logs
    torch.testing.assert_close(parts["loss"], parts["reconstruction"] + 600)


def test_the_foreground_counts_for_more(batch):
    """Of DotWorld's 144 pixels one differs from the median picture; before there is one, all do."""
    model, frames = vae(foreground_weight=11.0), batch.observation.flatten(0, 1).float() / 255
    assert (model.weights(frames)[..., 1:-1] == 11).all()
    model.refit(batch)
    assert (model.weights(frames).sum(dim=(1, 2, 3)) == 144 + 10).all()
    torch.manual_seed(1)
    parts = model.eval().loss(batch).logs
    assert parts["reconstruction"] > 144 * parts["mse"] * 1.5


def test_an_update_learns_from_as_many_frames_as_it_should(batch, monkeypatch):
    seen = []
    infer = VAE.infer
    monkeypatch.setattr(VAE, "infer", lambda self, frames: seen.append(len(frames)) or infer(self, frames))
    model = vae(num_frames=40)
    model.loss(batch)
    model.eval().loss(batch)
    assert seen == [40, int((~batch.is_last).sum())]


def test_a_fresh_decoder_starts_from_the_median_picture(batch):
    model = vae()
    model.refit(batch)
    median = (batch.observation.float() / 255).flatten(0, 1).median(dim=0).values
    torch.testing.assert_close(model.decode(model.initial(1))[0], median, atol=0.15, rtol=0)
    before = model.offset.clone()
    model.updated()
    model.refit(batch[:3])
    assert torch.equal(model.offset, before)


def test_it_sees_the_newest_frame_of_a_stack():
    model = VAE(channels=(4,))
    model.build_from(SINGLE._replace(frame_stack=4))
    stack = torch.randint(256, (3, 4, 12, 12), dtype=torch.uint8)
    other = torch.cat([stack[:, :3] // 2, stack[:, 3:]], dim=1)
    seen = [model.observe(model.initial(3), None, frames, None) for frames in (stack, other)]
    assert torch.equal(*seen)


def test_it_learns_where_the_dot_is(batch):
    """The dot is one pixel of 120 that it could be; guesses find it in one of 120 frames."""
    model = vae(channels=(16, 32), foreground_weight=10.0, kl_weight=0.02, optimization=Optimization(5e-3))
    model.refit(batch)
    learn(model, [batch], 300)
    painted = model.eval().decode(model.encode(batch).flatten(0, 1))
    true = batch.observation.flatten(0, 1)
    found = painted[..., 1:-1].flatten(1).argmax(dim=1) == true[..., 1:-1].flatten(1).argmax(dim=1)
    assert found.float().mean() > 0.4


def test_vectors_are_refused():
    with pytest.raises(UserError, match=r"frames \(C, H, W\)"):
        VAE().build_from(Spec((4,), 1, 2))


@pytest.mark.parametrize("options", [{"latent_size": 0}, {"channels": ()}, {"num_frames": 0}], ids=str)
def test_impossible_numbers(options):
    with pytest.raises(UserError, match="VAE"):
        VAE(**options)
