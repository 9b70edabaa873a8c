"""From a method's name and settings to its Optax transformation."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

import optax_sam
from experiments.data.kinds import kind_of
from experiments.methods import adapters, baselines, compositions, last_layer
from experiments.methods.rules import RULES
from experiments.settings import Settings, SettingsError, flag

Factory = Callable[..., Any]


def decoupled_wsam(base: Any, learning_rate: Any, rho: float = 0.05, gamma: float = 0.9) -> Any:
    """WSAM whose sharpness does not pass through the momentum."""
    return optax_sam.decoupled(optax_sam.wsam(rho, gamma), base, learning_rate)


def lesam(total_steps: int, budget: Any = 0.35, max_rho: Any = 0.3) -> optax_sam.SharpnessAware:
    """LE-SAM whose budget falls to 0 in the last fifth of the run, as the authors' does."""
    return optax_sam.lesam(optax_sam.schedules.cosine_at_end(budget, total_steps), max_rho)


# Those of `make demo` first.
METHODS: dict[str, Factory | None] = {
    "sgd": None,
    "sam": optax_sam.sam,
    "momentum_sam": optax_sam.momentum_sam,
    "rst": optax_sam.rst,
    "grst": optax_sam.grst,
    "vsam": optax_sam.vsam,
    "pugd": optax_sam.pugd,
    "tsam": optax_sam.tsam,
    "ausam": optax_sam.ausam,
    "asam": optax_sam.asam,
    "looksam": optax_sam.looksam,
    "look_layersam": optax_sam.look_layersam,
    "aesam": optax_sam.aesam,
    "aelooksam": optax_sam.aelooksam,
    "late_sam": optax_sam.late_sam,
    "esam": optax_sam.esam,
    "ksam": optax_sam.ksam,
    "reweighted_sam": optax_sam.reweighted_sam,
    "friendly_sam": optax_sam.friendly_sam,
    "vasso": optax_sam.vasso,
    "fisher_sam": optax_sam.fisher_sam,
    "sam_on": optax_sam.sam_on,
    "sparse_sam": optax_sam.sparse_sam,
    "sparse_sam_dynamic": optax_sam.sparse_sam,
    "fisher_mask_sam": optax_sam.fisher_mask_sam,
    "multistep_sam": optax_sam.multistep_sam,
    "usam": optax_sam.usam,
    "gsam": optax_sam.gsam,
    "gradient_norm_penalty": optax_sam.gradient_norm_penalty,
    "wsam": optax_sam.wsam,
    "decoupled_wsam": decoupled_wsam,
    "bilateral_sam": optax_sam.bilateral_sam,
    "single_step_sam": optax_sam.single_step_sam,
    "extrapolation": optax_sam.extrapolation,
    "graphsam": optax_sam.graphsam,
    "lesam": lesam,
    "fgsam": optax_sam.fgsam,
    "fgsam_plus": optax_sam.fgsam_plus,
    "random_perturbation": optax_sam.random_perturbation,
    "adaptive_random_perturbation": optax_sam.adaptive_random_perturbation,
    "random_sam": optax_sam.random_sam,
    "adasam": optax_sam.adasam,
    "bsam": optax_sam.bsam,
    "drawn_vsam": compositions.drawn_vsam,
    "friendly_looksam": compositions.friendly_looksam,
    "adaptive_rst": compositions.adaptive_rst,
    "sharded_gsam": compositions.sharded_gsam,
}

DEMO = ("sgd", "sam", "momentum_sam", "rst", "grst", "vsam", "pugd", "tsam", "ausam")

# What only networks with adapters can be trained with.
OF_ADAPTERS: dict[str, Factory] = {"flat_lora": adapters.flat_lora, "bi_lora": adapters.bi_lora}

# Variants of the base optimizer, which take one gradient.
BASELINES: dict[str, Factory] = {
    "averaged": baselines.averaged,
    "ham": baselines.ham,
    "last_layer_l2": last_layer.last_layer_l2,
} | OF_ADAPTERS

# They stand in the place of SGD, not before it.
WHOLE_OPTIMIZERS = ("decoupled_wsam", "adasam", "bsam")

# Settings of the base optimizer that they do without; the prior of bSAM is its decay. What `decoupled_wsam`
# and `ham` add to the step is not bounded by what clips the gradient; `bi_lora` sees parts of it.
UNUSED = {
    "decoupled_wsam": ("clip_norm",),
    "ham": ("clip_norm",),
    "bi_lora": ("clip_norm",),
    "adasam": ("optimizer", "momentum", "nesterov", "clip_norm"),
    "bsam": ("optimizer", "momentum", "nesterov", "clip_norm", "decay_in_loss"),
}

# Arguments of the compiled step, so that one compilation serves all their values.
TRACED = (
    "learning_rate",
    "weight_decay",
    "rho",
    "radius",
    "tilt",
    "lower_rho",
    "budget",
    "max_rho",
    "max_step",
    "step_size",
    "ascent_rate",
    "noise_scale",
    "average_steps",
    "mirror_strength",
    "mirror_decay",
    "penalty",
    "constant",
)

# Methods whose first epoch uses whole batches, so that every example gets a score.
WHOLE_FIRST_EPOCH = ("ausam", "drawn_vsam")


@dataclasses.dataclass(frozen=True)
class Run:
    """What a method may ask of the run that it is for; the names are those of the library's arguments.

    Attributes:
      num_examples: training examples.
      total_steps: steps of the whole run.
      momentum: of the base optimizer.
      learning_rate: the schedule.
      base: the base optimizer, weight decay included.
      surrogate_losses: as a loss function, cheaper.
      seed: of the run.
      steps_per_epoch: steps of an epoch.
      batch_size: examples per step.
      weight_decay: of the base optimizer.
    """

    num_examples: int
    total_steps: int
    momentum: float
    learning_rate: Any
    base: Any
    surrogate_losses: Callable[[Any, Any], Any]
    seed: Any
    steps_per_epoch: int
    batch_size: int
    weight_decay: float | None


def newer_methods() -> dict[str, Factory]:
    """Public methods that are not named above, and need nothing but what a run knows."""
    known = {field.name for field in dataclasses.fields(Run)}

    def fits(value: Any) -> bool:
        if not inspect.isfunction(value) or not value.__module__.startswith("optax_sam.methods."):
            return False
        signature = inspect.signature(value)
        needed = {p.name for p in signature.parameters.values() if p.default is p.empty}
        return signature.return_annotation is optax_sam.SharpnessAware and needed <= known

    return {name: value for name, value in vars(optax_sam).items() if name not in METHODS and fits(value)}


METHODS |= newer_methods()
NAMES = (*METHODS, *BASELINES, *RULES)


def factories() -> dict[str, Factory | None]:
    """Everything that a run can be trained with, by its name."""
    return METHODS | BASELINES | RULES


def derived(method: str, run: Run) -> dict[str, Any]:
    """Settings that follow from the run, where the library has no default or one for long runs."""
    if method == "graphsam":
        return {"refresh_steps": run.steps_per_epoch}
    if method in ("sparse_sam", "sparse_sam_dynamic", "fisher_mask_sam"):
        mask = {"mask": "dynamic"} if method == "sparse_sam_dynamic" else {}
        return {"refresh_steps": 5 * run.steps_per_epoch} | mask
    if method == "extrapolation":
        return {"step_size": run.learning_rate}
    if method == "late_sam":
        return {"start_step": run.total_steps * 4 // 5}
    if method == "reweighted_sam":
        return {"weight": 0.5, "difference_step": 0.001}
    if method == "sam_on":
        return {"mask": optax_sam.is_normalization}
    slices = max(number for number in range(1, 9) if run.batch_size % number == 0)
    if method == "sharded_gsam":
        return {"num_microbatches": slices}
    if method == "bsam":  # the loss of all examples with the prior is `num_examples` times ours with decay
        precision = run.num_examples * (run.weight_decay or 0.0)
        return {"prior_precision": precision, "augmentation_factor": 1, "num_microbatches": slices}
    return {}


def make(
    settings: Settings, run: Run, traced: Mapping[str, jax.Array] | None = None
) -> optax_sam.SharpnessAware | None:
    """Builds the method's transformation; None for plain SGD.

    Args:
      settings: name and settings of the method; what is None is left to the library.
      run: what the method may ask of the run.
      traced: arrays that replace settings of the same name.
    """
    factory = factories()[settings.method]
    if factory is None:
        return None
    values = derived(settings.method, run) | given(settings) | dict(traced or {}) | vars(run)
    if settings.method == "graphsam" and "rho" in values:
        values.setdefault("max_leaf_norm", values["rho"])
    names = accepted(settings.method)
    return factory(**{name: value for name, value in values.items() if name in names})


def accepted(method: str) -> tuple[str, ...]:
    """The settings that a method takes; none, if it is not known."""
    factory = factories().get(method)
    return tuple(inspect.signature(factory).parameters) if factory else ()


def given(settings: Settings) -> dict[str, Any]:
    """The method's settings that are not None."""
    return {name: value for name, value in vars(settings.method_settings).items() if value is not None}


def check(settings: Settings) -> None:
    """Refuses an unknown method, a setting of another method, and what the library refuses."""
    if settings.method not in NAMES:
        raise SettingsError(f"--method {settings.method} is not known: give {', '.join(NAMES)}")
    for name, value in given(settings).items():
        if name not in accepted(settings.method):
            raise SettingsError(
                f"{flag(name)} {value} is no setting of --method {settings.method}: leave it out"
            )
    for name in ("fraction", "example_fraction"):
        fraction = given(settings).get(name, 1.0)
        if not fraction * settings.batch_size >= 1:  # nor for NaN
            raise SettingsError(
                f"{flag(name)} {fraction} leaves no example of --batch-size {settings.batch_size}: "
                "give a larger fraction"
            )
    parts = given(settings).get("num_microbatches", 1)
    if parts < 1 or settings.batch_size % parts:
        raise SettingsError(
            f"--num-microbatches {parts} does not divide --batch-size {settings.batch_size}: give a divisor"
        )
    halves = settings.method == "random_perturbation" and given(settings).get("split_batch", True)
    if halves and settings.batch_size % 2:
        raise SettingsError(
            f"--batch-size {settings.batch_size} has no halves for random_perturbation: give an even number, "
            "or --split-batch False"
        )
    if settings.method in OF_ADAPTERS and settings.adapter_rank is None:
        raise SettingsError(
            f"--method {settings.method} trains adapters, and the run has none: give --adapter-rank 8 with "
            "--model minilm, or another method"
        )
    if settings.method in ("fgsam", "fgsam_plus") and kind_of(settings.data) != "image":
        raise SettingsError(
            f"--method {settings.method} needs a cheaper loss, which --data {settings.data} does not have: "
            "give images, or another method"
        )
    try:
        make(settings, _any_run(settings))
    except (ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise SettingsError(f"--method {settings.method}: {reason}") from error


def check_used(settings: Settings) -> None:
    """Refuses settings, given by the user, that a method which is an optimizer itself does not use."""
    unused = UNUSED.get(settings.method, ())
    if settings.method == "adasam" and not settings.decay_in_loss:
        unused = (*unused, "weight_decay")
    for name in unused:
        value = getattr(settings, name)
        if value != getattr(Settings, name):
            raise SettingsError(
                f"{flag(name)} {value} is not used by --method {settings.method}, which is an optimizer "
                "itself: leave it out"
            )


def _any_run(settings: Settings) -> Run:
    """A run with these settings, whatever the data."""
    return Run(
        num_examples=settings.batch_size,
        total_steps=settings.epochs,
        momentum=settings.momentum,
        learning_rate=0.1,
        base=optax.sgd(0.1),
        surrogate_losses=lambda params, batch: batch,
        seed=settings.seed,
        steps_per_epoch=1,
        batch_size=settings.batch_size,
        weight_decay=0.0,
    )


def gradients_spent(opt_state: optax.OptState, steps: int, method: str) -> float:
    """Gradient evaluations since the start, in units of one full batch."""
    if method in BASELINES or factories()[method] is None:
        return float(steps)
    return float(optax_sam.info(opt_state)["gradients"])


def relative_rise(opt_state: optax.OptState, method: str) -> dict[str, float]:
    """How much the loss rose in the last step, as a part of itself; NaN where it was not perturbed."""
    if method in BASELINES or factories()[method] is None:
        return {}
    info = optax_sam.info(opt_state)
    return {"relative_rise": float(info["sharpness"] / info["loss"])}
