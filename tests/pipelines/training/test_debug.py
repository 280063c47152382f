"""What `debug: true` makes small."""

import yaml
from jsonargparse import Namespace

from pipelines.search.search import Search
from pipelines.training.debug import shrink


def node(path: str, **arguments) -> Namespace:
    return Namespace(class_path=path, init_args=Namespace(**arguments))


def test_numbers_are_limits_and_all_else_is_replaced():
    agent = node("modules.agent.Agent", rounds=Namespace(model_updates=[1000, 1], policy_updates=0, together=False))
    agent.init_args.world_model = node("modules.frames.unet.UNet", size="medium", temperature=0.5)
    evaluate = node("pipelines.callbacks.measuring.evaluate.Evaluate", episodes=1, final_episodes=30, max_steps=None)
    stop = Namespace(simulations=None, seconds=9.0)
    evaluate.init_args.actor = node("pipelines.acting.play.SearchPlay")
    evaluate.init_args.actor.init_args.search = node("pipelines.search.search.Search", stop=stop, discount=0.5)
    evolve = node("pipelines.callbacks.dreaming.evolve.Evolve", starts=Namespace(context=3, episode_starts=5))
    bare = Namespace(class_path="pipelines.callbacks.measuring.evaluate.Evaluate")
    still = Namespace(class_path="pipelines.callbacks.acting.collect.Collect")
    shrink(Namespace(model=agent, trainer=Namespace(callbacks=[evaluate, evolve, bare, still])))
    assert agent.init_args.rounds == Namespace(model_updates=[2, 1], policy_updates=0, together=False)
    assert agent.init_args.world_model.init_args == Namespace(size="debug", temperature=0.5)
    shown = evaluate.init_args
    assert (shown.episodes, shown.final_episodes, shown.max_steps) == (1, 2, 20)
    assert stop == Namespace(**Search.debug["stop"])
    assert evolve.init_args.starts == Namespace(context=3, episode_starts=0)
    assert bare.init_args.final_episodes == 2
    assert bare.init_args.max_steps == 20
    assert still.init_args.steps_per_round == 0


def test_what_is_printed_and_kept_is_what_runs(run):
    outcome = run("fit", "--config", "muzero__atari", "--config", "debug", "--print_config")
    content = yaml.safe_load(outcome.out)
    assert content["model"]["init_args"]["size"] == "debug"
    actors = [callback.get("init_args", {}).get("actor") for callback in content["trainer"]["callbacks"]]
    stops = [actor["init_args"]["search"]["init_args"]["stop"] for actor in actors if actor]
    assert [(stop["simulations"], stop["seconds"]) for stop in stops] == [(4, None)] * 2
