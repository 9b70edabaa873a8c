"""Transformations that show what the others in a chain do."""

import optax


def remember():
    """Keeps what it is handed in its state, and hands it on."""
    return optax.GradientTransformation(optax.tree.zeros_like, lambda updates, state, params: (updates,) * 2)


def side_by_side(**transformations):
    """Hands its gradient to each of several transformations: a dict of their updates."""
    each = {name: optax.with_extra_args_support(tx) for name, tx in transformations.items()}

    def init(params):
        return {name: tx.init(params) for name, tx in each.items()}

    def update(updates, state, params=None, **extra_args):
        done = {name: tx.update(updates, state[name], params, **extra_args) for name, tx in each.items()}
        return {name: u for name, (u, _) in done.items()}, {name: s for name, (_, s) in done.items()}

    return optax.GradientTransformationExtraArgs(init, update)
