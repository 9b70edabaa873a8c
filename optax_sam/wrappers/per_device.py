"""m-sharpness over devices: one perturbation for each device, and one all-reduce of gradients."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, PartitionSpec

from optax_sam.arithmetic import means, one_device, sharding, trees
from optax_sam.engine.aliases import Grads, Params
from optax_sam.engine.examples import Rows
from optax_sam.engine.state import SharpnessAwareState
from optax_sam.engine.step_oracle import Given
from optax_sam.engine.transformation import Begun, Outcome, SharpnessAware, from_method
from optax_sam.wrappers.slices import PerSlice
from optax_sam.wrappers.wrapper import method_of


@dataclasses.dataclass(frozen=True, eq=False)
class PerDevice(PerSlice):
    """See `per_device`."""

    axis_name: str

    apart: ClassVar[bool] = True

    def num_slices(self, given: Given) -> int:
        mesh = jax.sharding.get_abstract_mesh()
        if self.axis_name not in mesh.axis_names:
            raise ValueError(
                f"axis_name={self.axis_name!r} is no axis of the mesh in use, which has the axes "
                f"{list(mesh.axis_names)}: call the step inside `with jax.set_mesh(mesh):`, or name "
                f"the axis along which the batch is split."
            )
        if self.axis_name in mesh.manual_axes:
            raise ValueError(
                f"axis_name={self.axis_name!r} belongs to a shard_map that is around this step already: "
                f"call the step outside of it. per_device is a shard_map of its own."
            )
        size = mesh.shape[self.axis_name]
        if given.examples.size is None or given.examples.size % size:
            raise ValueError(
                f"axis_name={self.axis_name!r} has {size} devices, which do not divide the batch of "
                f"{given.examples.size} examples: choose a multiple, or pad with examples of weight 0."
            )
        return size

    def begin(self, state: SharpnessAwareState, given: Given) -> Begun:
        with self._explained(given, self.num_slices(given)):
            return super().begin(state, given)

    def finish(
        self,
        grads: Grads,
        begun: Begun,
        state: SharpnessAwareState,
        params: Params,
        given: Given,
        perturb: bool | None,
    ) -> Outcome:
        with self._explained(given, len(begun.parts[1])):
            return super().finish(grads, begun, state, params, given, perturb)

    def each(self, function: Callable[[Any, Any], Any], parts: Any, shared: Any) -> Any:
        function = self._alone(function)

        def on_device(parts, shared):
            return jax.tree.map(lambda x: x[None], function(_only(parts), shared))

        return self._on_every_device(on_device, PartitionSpec(self.axis_name))(parts, shared)

    def mean_and_sum(
        self, function: Callable[[Any, Any], tuple[Any, Any]], shares: jax.Array, parts: Any, shared: Any
    ) -> tuple[Any, Any]:
        function = self._alone(function)

        def on_device(parts, shared):
            (share, part), (first, shared) = _only(parts), shared
            averaged, summed = function(part, shared)
            is_first = lax.axis_index(self.axis_name) == first
            sum_of = functools.partial(self._sum, is_first)
            averaged = jax.tree.map(sum_of, means.weighted(share, averaged), averaged)
            return averaged, lax.psum(summed, self.axis_name)

        shared = means.first_of(shares), shared
        return self._on_every_device(on_device, PartitionSpec())((shares, parts), shared)

    def _alone(self, function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        """`function` of a device's own part, to be called inside the `shard_map`."""

        def is_rows(part):
            return isinstance(part, Rows)

        return one_device.as_on_one_device(function, self.axis_name, self._kind(), is_rows)

    @contextlib.contextmanager
    def _explained(self, given: Given, num_slices: int) -> Iterator[None]:
        """An error about meshes says what the loss should do in a `shard_map`."""
        try:
            yield
        except Exception as error:
            if self._kind() == AxisType.Explicit:
                check_closes_over_nothing(given, num_slices)
            if "mesh" in str(error) or "with_sharding_constraint" in str(error):
                error.add_note(
                    f"optax_sam: axis_name={self.axis_name!r}: inside per_device the loss sees the rows of "
                    f"one device. Place arrays by a PartitionSpec without a mesh; a shard_map in the loss "
                    f"gets no mesh=, and in axis_names= the axes other than {self.axis_name!r}."
                )
            raise

    def _kind(self) -> AxisType:
        mesh = jax.sharding.get_abstract_mesh()
        return dict(zip(mesh.axis_names, mesh.axis_types, strict=True))[self.axis_name]

    def _on_every_device(self, function: Callable[..., Any], out_specs: PartitionSpec) -> Any:
        mapped = jax.shard_map(
            function,
            in_specs=(PartitionSpec(self.axis_name), PartitionSpec()),
            out_specs=out_specs,
            axis_names={self.axis_name},
            check_vma=False,  # every gradient is its own device's: nothing is reduced unasked
        )

        def placed(parts, shared):
            parts = jax.tree.map(lambda x: sharding.split_over(x, self.axis_name), parts)
            shared = jax.tree.map(lambda x: sharding.whole_over(x, self.axis_name), shared)
            return mapped(parts, shared)

        return placed

    def _sum(self, is_first: jax.Array, weighted: jax.Array, found: jax.Array) -> jax.Array:
        """The sum over devices of inexact leaves; those of the first device that counts of all others."""
        if trees.is_inexact(found):
            return lax.psum(weighted, self.axis_name).astype(found.dtype)
        if trees.is_key(found.dtype):
            data = self._sum(is_first, weighted, jax.random.key_data(found))
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(found))
        is_narrow = found.dtype == bool or jnp.iinfo(found.dtype).bits < 32  # as devices do not add
        dtype = jnp.int32 if is_narrow else found.dtype
        number = jnp.where(is_first, found.astype(dtype), jnp.zeros_like(found, dtype))
        return lax.psum(number, self.axis_name).astype(found.dtype)


def check_closes_over_nothing(given: Given, num_slices: int) -> None:
    """Refuses a loss that closes over arrays: JAX keeps those out of a `shard_map` on explicit axes."""
    objective: Any = given.objective  # a gradient function has come to an end before
    closed_over = []
    with contextlib.suppress(Exception):  # the loss fails here too, and the caller says why
        closed_over = objective.closed_over(given.params, given.examples, given.arguments, num_slices)
    found = [x for x in closed_over if not jax.typeof(x).sharding.mesh.empty]
    if found:
        types = ", ".join(f"{jax.typeof(x).dtype}{list(jax.typeof(x).shape)}" for x in found)
        raise ValueError(
            f"loss_fn closes over {len(found)} arrays ({types}), which cannot enter per_device on explicit "
            f"mesh axes: pass them as further arguments, "
            f"value_and_grad(losses)(params, batch, *args, state=...)."
        )


def _only(parts: Any) -> Any:
    """The one part that a device has of every array."""
    return jax.tree.map(lambda x: x[0], parts)


def per_device(method: SharpnessAware, axis_name: str = "data") -> SharpnessAware:
    """m-sharpness: the examples of each device have their own perturbation.

    With `B_i` the examples on device `i` and `S_i` what `method` makes of them, the descent is the mean of
    the `S_i`. This is `per_microbatch` with one slice for each device, as one `jax.shard_map` over the mesh
    in use. The first gradients stay where they are. A step therefore needs one all-reduce of a gradient, as
    many as SGD. (`method` alone, on a batch that is split over devices, perturbs for the whole batch, and
    needs one all-reduce for each gradient.)

    A loss may place its arrays on the mesh, as it does without `per_device`. Along the axis each device has
    its own rows already. Other axes are kept. Parameters that are split over the axis are gathered for the
    step. On explicit axes descent and state are split like them again. On automatic axes this is XLA's
    choice. `value_and_grad`, `aux` and the state are those of `per_microbatch`. The state's float leaves are
    averaged. Where they are large this is a further all-reduce, as for the remembered gradient of vSAM and
    the scores of AUSAM.

    Args:
      method: any sharpness-aware method.
      axis_name: the axis of the mesh along which the batch is split. Axes may be automatic or explicit.

    Returns:
      A `SharpnessAware` transformation, to be called inside `with jax.set_mesh(mesh)`.

    Raises:
      TypeError: `method` is none of this library's, or `axis_name` is no string.
      ValueError: the mesh in use has no such axis. The devices of the axis do not divide the batch. The loss
        has a `shard_map` over the axis.

    Cost:
      Gradients per step as `method`. One all-reduce of a gradient. One parameter-sized buffer a device.

    Guarantees:
      Equal to `per_microbatch` with as many slices as devices, to float rounding.

    Example:
      >>> import optax_sam
      >>> m_sam = optax_sam.per_device(optax_sam.sam(rho=0.05))

    References:
      Pierre Foret, Ariel Kleiner, Hossein Mobahi, Behnam Neyshabur, `Sharpness-Aware Minimization for
      Efficiently Improving Generalization <https://arxiv.org/abs/2010.01412>`_, 2020, section 4.1.
    """
    if not isinstance(axis_name, str):
        raise TypeError(f"axis_name={axis_name!r} is no string: pass the name of an axis of the mesh.")
    return from_method(PerDevice(method_of(method), axis_name))
