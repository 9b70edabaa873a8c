"""The settings of every method, under the names of the library's arguments."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class MethodSettings:
    """Settings of the method. None takes the tuned value for the data set, else the library's default."""

    # How far
    rho: float | None = None
    """Radius of the perturbation (all but sgd, pugd, lesam, extrapolation and the random perturbations)."""
    budget: float | None = None
    """How far the loss may rise. It falls to 0 in the last fifth of the steps (lesam)."""
    max_rho: float | None = None
    """Largest radius (lesam)."""
    constant: float | None = None
    """The factor of a rule's radius, or the rise of the loss that it aims at (the rules of
    experiments.evidence.judge_rules)."""
    normalization: float | None = None
    """From 0, a perturbation in proportion to the gradient, to 1, one of length rho (sam_sps)."""
    radius: float | None = None
    """Radius of the perturbation (pugd), or of the random start (tsam)."""
    lower_rho: float | None = None
    """Radius of the second, downhill perturbation (bilateral_sam)."""
    step_size: float | None = None
    """How far ahead the gradient is taken. None is the learning rate (extrapolation)."""
    ascent_rate: float | None = None
    """How far one gradient lifts the perturbation (persistent_sam, bi_lora)."""
    max_leaf_norm: float | None = None
    """Largest norm of one array's perturbation. None is rho (graphsam)."""
    num_steps: int | None = None
    """Ascent steps to the radius (multistep_sam)."""
    eta: float | None = None
    """Floor under the size of a weight (asam, sam_on), or weight of the Fisher diagonal (fisher_sam)."""
    order: float | None = None
    """Norm of the radius: 2, or inf (sam_on)."""
    adaptive: bool | None = None
    """Whether the perturbation is in proportion to the weights (graphsam)."""

    # Whereto
    sigma: float | None = None
    """Share of the mean gradient that is taken out of the direction (friendly_sam)."""
    decay: float | None = None
    """Of a running mean of gradients (friendly_sam, single_step_sam, graphsam, aesam, aelooksam), or of the
    perturbation (persistent_sam)."""
    theta: float | None = None
    """Weight of the new gradient in the direction (vasso)."""
    friendly: bool | None = None
    """Whether the running mean is taken out of the direction (single_step_sam)."""
    source: Literal["gradient", "previous_gradient", "momentum", "noise"] | None = None
    """What points ahead (extrapolation)."""

    # Which weights
    sparsity: float | None = None
    """Share of the weights that is not perturbed (sparse_sam, fisher_mask_sam)."""
    mask: Literal["fisher", "dynamic"] | None = None
    """How those weights are chosen (sparse_sam)."""
    pattern: str | None = None
    """unstructured, structured, or N of M such as 2:4 (sparse_sam)."""
    refresh_steps: int | None = None
    """Steps from one choice to the next (sparse_sam, fisher_mask_sam; None is five epochs), or from one
    gradient at the weights to the next (graphsam; None is one epoch)."""
    drop_rate: float | None = None
    """Share of the perturbed weights that is exchanged at first (sparse_sam)."""
    weight_fraction: float | None = None
    """Probability of an array to be perturbed (esam)."""

    # When
    probability: float | None = None
    """Share of steps that are perturbed (rst, grst)."""
    every_k: int | None = None
    """Every k-th step is perturbed (looksam, look_layersam, fgsam_plus)."""
    start_step: int | None = None
    """The first perturbed step. None leaves the last fifth of all steps (late_sam)."""
    start_threshold: float | None = None
    """Deviations above the mean from which a gradient is large, at the start (aesam, aelooksam)."""
    end_threshold: float | None = None
    """The same at the end (aesam, aelooksam)."""
    window: int | None = None
    """Steps in which the number of perturbed steps is fixed (vsam)."""
    slices: int | None = None
    """Slices of the variance estimate. They must divide the window (vsam)."""
    max_rate: float | None = None
    """Largest share of perturbed steps (vsam)."""
    rate_gain: tuple[float, float] | None = None
    """How fast that share follows the ratio and the variance of the gradients (vsam)."""
    reuse_decay: float | None = None
    """Factor per step on the reused difference of the gradients (vsam)."""
    reuse_steps: int | None = None
    """Steps in which that difference is reused (vsam)."""
    warmup_steps: int | None = None
    """First steps, all of them perturbed (vsam)."""
    tail: int | None = None
    """Last parameter arrays whose norms steer the share of perturbed steps (vsam)."""

    # What becomes of the gradients
    alpha: float | None = None
    """Weight of the perturbed gradient (grst, where the library's default is 1 / probability,
    gradient_norm_penalty, the random perturbations), or of a part of a gradient (looksam,
    look_layersam, aelooksam, gsam, fgsam_plus)."""
    gamma: float | None = None
    """Weight of the sharpness, below 1 (wsam, decoupled_wsam)."""
    mix: float | None = None
    """Weight of the network's own gradient beside the surrogate's (fgsam, fgsam_plus)."""
    minimize_clean: bool | None = None
    """Whether the clean gradient is the main one (gsam)."""
    max_step: float | None = None
    """Largest step size. The learning rate multiplies it (sam_sps)."""
    lower_bound: float | None = None
    """A lower bound of the loss of any batch (sam_sps)."""
    tilt: float | None = None
    """How strongly samples with a large loss dominate. 0 is their plain mean (tsam)."""

    # Noise
    num_samples: int | None = None
    """Perturbed samples per step (tsam), or examples of a mask's estimate (sparse_sam, fisher_mask_sam)."""
    noise_scale: float | None = None
    """Standard deviation of the noise, in proportion to the weights (random_sam, the random perturbations,
    flat_lora), or before it is cut to the radius (tsam)."""
    noise: Literal["gaussian", "uniform"] | None = None
    """Distribution of the random start (tsam)."""
    split_batch: bool | None = None
    """Whether each gradient has half of the batch (random_perturbation)."""
    fisher_weight: float | None = None
    """How strongly large gradients damp the noise (adaptive_random_perturbation)."""
    fisher_decay: float | None = None
    """How long they are remembered (adaptive_random_perturbation)."""

    # Of the base optimizer's variants
    average_steps: float | None = None
    """Steps over which the weights are averaged by which the network is judged (averaged)."""
    mirror_strength: float | None = None
    """How strongly weights grow or shrink along their gradient (ham)."""
    mirror_decay: float | None = None
    """How fast weights shrink in proportion to themselves (ham)."""
    penalty: float | None = None
    """Weight of the squares of the last layer and of its inputs (last_layer_l2)."""

    # Which examples
    fraction: float | None = None
    """Share of the batch that is used (ausam, ksam)."""
    example_fraction: float | None = None
    """Share of the batch that the second gradient is of (esam)."""
    score_range: tuple[float, float] | None = None
    """Relative weights of the lowest and the highest score in the draw (ausam)."""
    ramp_steps: int | None = None
    """Steps over which the scores gain their full weight in the draw (ausam)."""
    score: Literal["loss_difference", "gradient_norm"] | None = None
    """What an example's score is (ausam)."""
    weight: float | None = None
    """How strongly examples with a large gradient dominate; None is 0.5 (reweighted_sam)."""
    difference_step: float | None = None
    """Length of the step that estimates their gradients; None is 0.001 (reweighted_sam)."""

    num_microbatches: int | None = None
    """Slices of the batch, each perturbed on its own; None is the most up to 8 (bsam, sharded_gsam)."""

    # Whole optimizers
    b1: float | None = None
    """Decay of the mean gradient (adasam, bsam)."""
    b2: float | None = None
    """Decay of the mean square (adasam), or of the scale (bsam)."""
    epsilon: float | None = None
    """Root of the first mean square (adasam)."""
    prior_precision: float | None = None
    """Strength of the prior; None is what the weight decay amounts to (bsam)."""
    damping: float | None = None
    """Floor under the scale (bsam)."""
    initial_scale: float | None = None
    """The first scale (bsam)."""
    augmentation_factor: int | None = None
    """How often each example counts; None is 1 (bsam)."""
