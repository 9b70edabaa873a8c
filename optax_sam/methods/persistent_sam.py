"""Persistent SAM: a perturbation that climbs on through the steps."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from optax_sam.arithmetic import trees
from optax_sam.engine import checks
from optax_sam.engine.aliases import Grads, Params
from optax_sam.engine.assembly import SharpnessAware, sharpness_aware
from optax_sam.engine.hyperparameters import FixedProbability, Radius, Scalar, ScalarOrSchedule, at_step
from optax_sam.pieces.ascents import in_proportion
from optax_sam.pieces.bases import Direction, Step
from optax_sam.pieces.starts import ahead


@dataclasses.dataclass(frozen=True)
class _Persistent(Direction):
    """`e`, kept within the radius; it climbs along every descent."""

    rho: ScalarOrSchedule
    ascent_rate: ScalarOrSchedule
    decay: Scalar

    needs_gradient: ClassVar[bool] = False
    asks_anew: ClassVar[bool] = False

    def init(self, params: Params, key: jax.Array) -> Params:
        del key
        return trees.memory_like(params)

    def read(self, state: Params, step: Step) -> tuple[Grads, Params]:
        norm = trees.norm(state)
        rho = jnp.asarray(at_step(self.rho, step.count)).astype(norm.dtype)
        is_within = norm <= rho
        shortened = jnp.where(is_within, 1.0, rho / jnp.where(is_within, 1.0, norm))
        return trees.map_wide(lambda e: trees.times(shortened, e), state), state

    def write(self, state: Params, step: Step) -> Params:
        rate = at_step(self.ascent_rate, step.count)

        def on_leaf(e, g):
            return trees.times(1 - self.decay, e) + trees.times(rate, g)

        return trees.saturated(trees.map_wide(on_leaf, step.direction, step.descent))


def persistent_sam(
    rho: Radius = 0.3, ascent_rate: Radius = 0.1, decay: FixedProbability = 0.1
) -> SharpnessAware:
    """Persistent SAM: parameters and perturbation take one step each along the same gradient.

    The parameters go down, and the perturbation goes up. It is kept from step to step, so that it climbs as
    far as many steps do. One gradient a step is enough.

    `e_t = min(1, rho / ||s_t||) s_t`; descent `g = grad L(w + e_t)`; `s_{t+1} = (1 - decay) e_t +
    ascent_rate g`, `s_0 = 0`.

    Args:
      rho: largest radius, in the L2 norm over all parameters. A number or a schedule of the step.
      ascent_rate: how far one gradient lifts the perturbation, 0 or more, in the units of a learning
        rate. A number or a schedule of the step.
      decay: of the perturbation in each step, from 0 (it only climbs) to 1 (it is that of the last
        gradient alone).

    Returns:
      A `SharpnessAware` transformation, to stand first in an `optax.chain`. It needs an oracle.

    Raises:
      ValueError: a number is outside its range. `grad_fn` comes in place of an oracle.

    Cost:
      1 gradient per step; one parameter-sized buffer.

    Guarantees:
      `rho=0` is the base optimizer. `loss` is that of the perturbed point.

    Example:
      >>> import optax, optax_sam
      >>> tx = optax.chain(optax_sam.persistent_sam(0.3, ascent_rate=0.1), optax.sgd(0.1, momentum=0.9))

    References:
      Yuhang Liu, Tao Li, Zhehao Huang, Zuopeng Yang, Xiaolin Huang, `Bi-LoRA: Efficient Sharpness-Aware
      Minimization for Fine-Tuning Large-Scale Models <https://arxiv.org/abs/2508.19564>`_, 2025, which
      does this with a second adapter.

    Deviations:
      The paper's perturbation is an adapter of its own, and never decays. Here it is a tree like the
      parameters. Nothing is published about this form.
    """
    checks.number_or_schedule("rho", rho, low=0)
    checks.number_or_schedule("ascent_rate", ascent_rate, low=0)
    checks.number("decay", decay, low=0, high=1)
    direction = _Persistent(rho, ascent_rate, decay)
    return sharpness_aware(in_proportion(1.0), direction=direction, start=ahead())
