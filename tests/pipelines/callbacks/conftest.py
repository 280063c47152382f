"""Stores of DotWorld."""

import numpy as np
import pytest

from datamodules.collector import Collector
from tests.datamodules.test_replay_data import Counting, DotReplay
from tests.fakes import DotWorld
from tests.pipelines.callbacks.dreaming.dreams import EXTRAS, NUM_ENVS, ROWS


@pytest.fixture
def record(tmp_path):
    """Record a store and open it as data; the columns of every row say its number and its environment."""

    def record(world=DotWorld, num_rows=ROWS, **options) -> DotReplay:
        path = tmp_path / f"{world.__name__}{num_rows}"
        if not path.exists():
            data = DotReplay(extras=EXTRAS)
            data.environment = world(NUM_ENVS, limit=12)
            store, actor = data.create(path), Counting(DotWorld.num_actions, np.random.default_rng(0))
            collector = Collector(data.environment, store)
            for _ in range(num_rows):
                collector.step(actor)
            store.close()
        data = DotReplay(
            **{"path": path, "frame_stack": 4, "extras": EXTRAS, "batch_size": 8, "sequence_length": 4} | options
        )
        data.setup("fit")
        return data

    return record
