"""mctx's search of MuZero, compiled by JAX, on the same one-layer network.

Runs in an environment of mctx's own. Reads a request per line, {"roots", "actions", "simulations", "repeats"}, and
answers {"seconds": [...]}; compilation is not counted.
"""

import json
import time
from functools import partial

import peer

try:
    import jax
    import jax.numpy as jnp
    import mctx
except ImportError:
    raise peer.missing("mctx") from None

LATENT = 64


@partial(jax.jit, static_argnames=("simulations",))
def search(weights, key, latent, simulations: int):
    """Search from latents (B, LATENT)."""

    def network(latent, action):
        output = weights["action"][action] + latent @ weights["latent"]
        return jnp.tanh(output[:, :LATENT]), output[:, LATENT], output[:, LATENT + 1], output[:, LATENT + 2 :]

    def recurrent(parameters, key, action, latent):
        latent, reward, value, logits = network(latent, action)
        discount = jnp.full_like(reward, 0.997)
        return mctx.RecurrentFnOutput(reward=reward, discount=discount, prior_logits=logits, value=value), latent

    latent, _, value, logits = network(latent, jnp.zeros(latent.shape[0], jnp.int32))
    root = mctx.RootFnOutput(prior_logits=logits, value=value, embedding=latent)
    found = mctx.muzero_policy((), key, root, recurrent, num_simulations=simulations, dirichlet_fraction=0.0)
    return found.action, found.action_weights, found.search_tree.node_values[:, 0]


def main() -> None:
    ready = set()
    for request in peer.requests():
        roots, actions, simulations = (request[name] for name in ("roots", "actions", "simulations"))
        keys = jax.random.split(jax.random.PRNGKey(0), 3)
        width = LATENT + 2 + actions
        weights = {
            "latent": jax.random.normal(keys[0], (LATENT, width)) / 8,
            "action": jax.random.normal(keys[1], (actions, width)) / 8,
        }
        latent = jnp.zeros((roots, LATENT))
        if (roots, actions, simulations) not in ready:
            jax.block_until_ready(search(weights, keys[2], latent, simulations))
            ready.add((roots, actions, simulations))
        seconds = []
        for _ in range(request["repeats"]):
            begin = time.perf_counter()
            jax.block_until_ready(search(weights, keys[2], latent, simulations))
            seconds.append(time.perf_counter() - begin)
        print(json.dumps({"seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()
