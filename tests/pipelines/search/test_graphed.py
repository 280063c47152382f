"""The recorded call of a simulation, beside the plain one."""

import pytest
import torch

from modules.latents.muzero import MuZero
from modules.world_model import Spec
from pipelines.search.evaluators import NetworkEvaluator
from pipelines.search.graphed import MOST, Graphed
from pipelines.search.rules import Puct, Stop
from pipelines.search.search import Search

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def model_on(device: str) -> MuZero:
    """An untrained model whose heads say something."""
    torch.manual_seed(0)
    model = MuZero("debug", norm="batch", value_prefix=3)
    model.build_from(Spec((1, 32, 32), 1, 4))
    model.eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.to(device)


def roots_of(model: MuZero, rows: int) -> torch.Tensor:
    with torch.no_grad():
        frames = torch.randint(0, 256, (rows, 1, 32, 32), dtype=torch.uint8, device=model.device)
        return model.networks.represent(frames)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=gpu)])
def test_a_search_by_it_finds_what_a_plain_search_finds_whatever_the_weights_are(device):
    model = model_on(device)
    evaluate = NetworkEvaluator(model, model.policy)
    expand = Graphed(model, evaluate)
    search = Search(Puct(), Stop(20))
    for rows in (3, 5, 3):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        roots = roots_of(model, rows)
        plain, graphed = search.run(roots, model, evaluate), search.run(roots, None, evaluate, expand=expand)
        assert (plain.visits == graphed.visits).all()
        assert torch.allclose(torch.from_numpy(plain.value), torch.from_numpy(graphed.value), atol=1e-5)


@gpu
def test_casts_of_the_weights_are_made_anew_and_sizes_beyond_the_limit_run_as_they_are():
    model = model_on("cuda")
    expand = Graphed(model, NetworkEvaluator(model, model.policy))
    with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16):
        for rows in range(1, MOST + 3):
            states, actions = roots_of(model, rows), torch.zeros(rows, dtype=torch.int64, device="cuda")
            for _ in range(2):
                for parameter in model.parameters():
                    parameter.add_(0.05 * torch.randn_like(parameter))
                torch.clear_autocast_cache()
                step, found = expand(states, actions)
                plain = model.step(states, actions)
                logits, _ = model.policy(model.features(plain.state))
                assert torch.allclose(step.state, plain.state, atol=0.05)
                assert torch.allclose(found.logits, logits, atol=0.1 * float(logits.abs().max()))
    assert len(expand._graphs) == MOST
