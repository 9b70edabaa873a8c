"""Sharpness-aware minimization (SAM) as Optax gradient transformations."""

# Methods, one per paper.
from optax_sam import per_example as per_example
from optax_sam import schedules as schedules

# Pieces, by the question that they answer.
from optax_sam.ascents import to_radius as to_radius
from optax_sam.combinations import mix as mix
from optax_sam.combinations import perturbed as perturbed
from optax_sam.combinations import unit as unit
from optax_sam.combinations import unit_sum as unit_sum
from optax_sam.directions import gradient as gradient
from optax_sam.gates import always as always
from optax_sam.gates import every as every
from optax_sam.gates import with_probability as with_probability
from optax_sam.gates import with_variance_rate as with_variance_rate
from optax_sam.geometry import elementwise as elementwise
from optax_sam.geometry import euclidean as euclidean
from optax_sam.geometry import magnitude as magnitude
from optax_sam.hyperparameters import static_arguments as static_arguments
from optax_sam.jaxprs import canonical_convolutions as canonical_convolutions
from optax_sam.methods.asam import asam as asam
from optax_sam.methods.ausam import ausam as ausam
from optax_sam.methods.pugd import pugd as pugd
from optax_sam.methods.rst import grst as grst
from optax_sam.methods.rst import rst as rst
from optax_sam.methods.sam import sam as sam
from optax_sam.methods.tsam import tsam as tsam
from optax_sam.methods.vsam import vsam as vsam
from optax_sam.oracle import Oracle as Oracle
from optax_sam.reuse import decayed_difference as decayed_difference
from optax_sam.reuse import nothing as nothing
from optax_sam.selections import everything as everything
from optax_sam.sharpness_aware import SharpnessAware as SharpnessAware
from optax_sam.sharpness_aware import sharpness_aware as sharpness_aware
from optax_sam.starts import at_params as at_params
from optax_sam.starts import at_random as at_random
from optax_sam.starts import drawn_by_score as drawn_by_score
from optax_sam.state import SharpnessAwareState as SharpnessAwareState
from optax_sam.state import due as due
from optax_sam.state import info as info
from optax_sam.wrappers import over_draws as over_draws
from optax_sam.wrappers import per_microbatch as per_microbatch
from optax_sam.wrappers import tilted as tilted
