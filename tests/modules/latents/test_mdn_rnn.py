"""The MDN-RNN, against plain recurrences and exact outcomes of DotWorld."""

import pytest
import torch

from modules.errors import UserError
from modules.latents.mdn_rnn import MDNRNN, Memory
from modules.latents.vae import VAE
from modules.layers.mixture import log_density, mixture
from modules.optimization import Optimization
from modules.world_model import Spec
from tests.modules.latents.worlds import learn, mdn_rnn, vae, windows


@pytest.fixture(scope="module")
def batch(tmp_path_factory):
    return windows(tmp_path_factory.mktemp("rows") / "store", num_windows=64)


def test_the_state_is_one_row_and_a_policy_sees_z_and_h():
    model = mdn_rnn(hidden_size=10)
    state = torch.randn(3, 26)
    assert (model.state_shape, model.feature_shape) == ((26,), (16,))
    assert torch.equal(model.features(state), state[:, :16])
    assert model.decode(state).shape == (3, 1, 12, 12)
    after = model.step(state, torch.tensor([0, 1, 2]))
    assert after.state.shape == (3, 26)
    assert (after.continuation > 0).all() & (after.continuation < 1).all()
    weights = torch.eye(4)[[0, 1, 2]]
    torch.manual_seed(0)
    by_number = model.step(state, torch.tensor([0, 1, 2])).state
    torch.manual_seed(0)
    assert torch.equal(by_number, model.step(state, weights).state)


def test_the_paper_s_networks():
    """Appendix A.2: an LSTM of 256, five Gaussians for each of 32 numbers."""
    model = MDNRNN(VAE())
    model.build_from(Spec((3, 64, 64), 1, 3))
    assert model.memory.lstm.weight_hh_l0.shape == (1024, 256)
    assert model.memory.lstm.weight_ih_l0.shape == (1024, 35)
    assert model.memory.head.out_features == 3 * 5 * 32


def test_memories_end_where_episodes_open():
    """In one go as in many: a plain cell that is wiped at every opening."""
    memory = Memory(3, 2, 5, 2, "categorical")
    inputs, opens = torch.randn(4, 9, 5), torch.rand(4, 9) < 0.3
    found = memory(inputs, opens)
    for b in range(4):
        h = c = torch.zeros(1, 5)
        for t in range(9):
            if opens[b, t]:
                h = c = torch.zeros(1, 5)
            h, c = memory.step(inputs[b : b + 1, t], h, c)
            torch.testing.assert_close(found[b, t], h[0])
    torch.testing.assert_close(memory(inputs, torch.zeros_like(opens)), memory.lstm(inputs)[0])


def test_encode_is_a_scan_over_observe(batch):
    model = mdn_rnn(hidden_size=10).eval()
    is_first = batch.is_first.clone()
    is_first[:, 0] = True
    rows = batch.replace(is_first=is_first)
    with torch.no_grad():
        torch.testing.assert_close(model.encode(rows), super(MDNRNN, model).encode(rows))


def test_the_loss_compares_each_row_with_the_next(batch):
    """With the mean for a draw; nothing is learned across ends, of the closing frames no density is asked.

    Rewards and ends count by the weights of their windows.
    """
    model = mdn_rnn(hidden_size=10).eval()
    weight = torch.rand(batch.shape[0])
    batch = batch.replace(extras={"weight": weight[:, None].expand(batch.shape)})
    model.vae.infer = lambda frames: (VAE.infer(model.vae, frames)[0], torch.full((len(frames), 6), -50.0))
    _, parts, states, _ = model.loss(batch)
    assert states is None
    z = model.vae.encode(batch)
    states, densities, outcomes = model.encode(batch), [], []
    for b, t in batch.has_successor().nonzero().tolist():
        h, _ = model.remember(states[b, t : t + 1], batch.action[b, t : t + 1])
        reward, goes_on = model.memory.outcomes(h)
        if batch.continuation[b, t]:
            densities.append(log_density(mixture(model.memory.head(h), 6), z[b, t + 1 : t + 2]).mean())
        outcomes.append(
            torch.cat(
                [
                    model.memory.outcomes.reward_losses(reward, batch.reward[b, t : t + 1]),
                    model.memory.outcomes.continuation_losses(goes_on, batch.continuation[b, t : t + 1]),
                ]
            )
        )
    share = weight[batch.has_successor().nonzero()[:, 0], None]
    reward, continuation = (share * torch.stack(outcomes)).sum(dim=0) / share.sum()
    torch.testing.assert_close(parts["nll"], -torch.stack(densities).mean())
    torch.testing.assert_close(parts["reward"], reward)
    torch.testing.assert_close(parts["continuation"], continuation)
    expected = parts["vae_loss"] + parts["nll"] + reward + continuation
    torch.testing.assert_close(parts["loss"], expected)


def test_every_parameter_is_clipped_with_one_part():
    model = mdn_rnn(hidden_size=10)
    parts = [id(parameter) for part in model.gradient_parts() for parameter in part.parameters()]
    assert len(model.gradient_parts()) == 3, "the VAE, the LSTM and its density, rewards and ends"
    assert sorted(parts) == sorted(id(parameter) for parameter in model.parameters())


def test_z_is_drawn_anew_each_time(batch):
    model = mdn_rnn(hidden_size=10).eval()
    assert model.loss(batch).logs["nll"] != model.loss(batch).logs["nll"]


def test_no_gradient_passes_between_the_parts(batch):
    def gradients(model, loss) -> list[torch.Tensor]:
        model.zero_grad()
        loss.backward()
        return [p.grad.clone() for p in model.vae.parameters()]

    model, alone = mdn_rnn(hidden_size=10), vae()
    alone.load_state_dict(model.vae.state_dict())
    torch.manual_seed(3)
    together = gradients(model, model.loss(batch).total)
    torch.manual_seed(3)
    alone.loss(batch).total.backward()
    assert all(torch.equal(a, p.grad) for a, p in zip(together, alone.parameters(), strict=True))
    model.zero_grad()
    model.memory_loss(batch)[0].backward()
    assert all(p.grad is None for p in model.vae.parameters())
    assert all(p.grad is not None for p in model.memory.parameters())


def test_one_after_the_other(batch):
    """As in the paper: first the VAE alone, then it stands still."""
    model = mdn_rnn(hidden_size=10, vae_updates=2)

    def weights(part) -> list[torch.Tensor]:
        return [p.detach().clone() for p in part.parameters()]

    def moved(before, part) -> bool:
        return not all(torch.equal(a, b) for a, b in zip(before, part.parameters(), strict=True))

    for update in range(4):
        before = weights(model.vae), weights(model.memory)
        parts = learn(model, [batch], 1)
        assert moved(before[0], model.vae) == (update < 2) == ("vae_kl" in parts)
        assert moved(before[1], model.memory) == (update >= 2) == ("nll" in parts)
    assert model.vae.updates == 2
    assert {"vae_kl", "nll"} <= model.eval().loss(batch).logs.keys(), "both are measured"


def test_it_learns_what_actions_do(batch):
    """Rewards and ends of DotWorld follow from where the dot is, and from the action."""
    fast = Optimization(5e-3)
    of_vae = {"channels": (16, 32), "foreground_weight": 10.0, "kl_weight": 0.02, "optimization": fast}
    model = mdn_rnn(of_vae, hidden_size=32, optimization=fast)
    model.refit(batch)
    fresh = model.eval().loss(batch).logs
    model.train()
    learn(model, [batch], 300)
    parts = model.eval().loss(batch).logs
    assert parts["nll"] < fresh["nll"] - 0.1
    assert parts["reward"] < 0.5 * fresh["reward"]
    assert parts["continuation"] < 0.5 * fresh["continuation"]


def test_a_collapse_is_named(batch):
    model = mdn_rnn(hidden_size=10)
    model.loss(batch)
    assert model.nonfinite_reason() == ""
    with torch.no_grad():
        model.memory.head.bias.fill_(float("nan"))
    loss = model.loss(batch).total
    assert loss.isnan()
    assert "the mixture density of the MDN-RNN collapsed" in model.nonfinite_reason()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temperature": -0.1}, "temperature must be at least 0"),
        ({"hidden_size": 0}, "at least 1"),
        ({"mixtures": 0}, "at least 1"),
        ({"vae_updates": -1}, "vae_updates"),
    ],
    ids=str,
)
def test_impossible_numbers(options, words):
    with pytest.raises(UserError, match=words):
        MDNRNN(VAE(), **options)
