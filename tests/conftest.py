import os

import pytest
import torch

os.environ["WANDB_MODE"] = "offline"
os.environ.pop("PL_GLOBAL_SEED", None)
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded():
    """Every test draws the same numbers, whichever tests ran before it; a seed set by one does not reach the next."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
    os.environ.pop("PL_GLOBAL_SEED", None)
