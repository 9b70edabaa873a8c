"""How sharp a minimum is. Measured and drawn, never used by training.

Every measurement takes a loss as in the training step, parameters, and one batch or many. The host drives it.
It keeps the sharding of the parameters, and returns a small record that prints well.
"""

from optax_sam.sharpness.along import BatchSharpness as BatchSharpness
from optax_sam.sharpness.along import DirectionalSharpness as DirectionalSharpness
from optax_sam.sharpness.along import batch_sharpness as batch_sharpness
from optax_sam.sharpness.along import directional_sharpness as directional_sharpness
from optax_sam.sharpness.balls import Rise as Rise
from optax_sam.sharpness.balls import ascent_sharpness as ascent_sharpness
from optax_sam.sharpness.balls import average_sharpness as average_sharpness
from optax_sam.sharpness.balls import surrogate_gap as surrogate_gap
from optax_sam.sharpness.critical import CriticalSharpness as CriticalSharpness
from optax_sam.sharpness.critical import critical_sharpness as critical_sharpness
from optax_sam.sharpness.critical import relative_critical_sharpness as relative_critical_sharpness
from optax_sam.sharpness.curvatures import EmpiricalFisher as EmpiricalFisher
from optax_sam.sharpness.curvatures import FiniteDifferences as FiniteDifferences
from optax_sam.sharpness.curvatures import Fisher as Fisher
from optax_sam.sharpness.curvatures import GaussNewton as GaussNewton
from optax_sam.sharpness.diagonals import Diagonal as Diagonal
from optax_sam.sharpness.diagonals import diagonal as diagonal
from optax_sam.sharpness.eigenvalues import Eigenvalues as Eigenvalues
from optax_sam.sharpness.eigenvalues import top_eigenvalues as top_eigenvalues
from optax_sam.sharpness.gradients import GradientNoise as GradientNoise
from optax_sam.sharpness.gradients import PsfNorm as PsfNorm
from optax_sam.sharpness.gradients import gradient_noise as gradient_noise
from optax_sam.sharpness.gradients import psf_norm as psf_norm
from optax_sam.sharpness.landscapes import Landscape as Landscape
from optax_sam.sharpness.landscapes import difference as difference
from optax_sam.sharpness.landscapes import landscape as landscape
from optax_sam.sharpness.landscapes import random_direction as random_direction
from optax_sam.sharpness.layers import Layers as Layers
from optax_sam.sharpness.layers import by_layer as by_layer
from optax_sam.sharpness.page import Report as Report
from optax_sam.sharpness.page import report as report
from optax_sam.sharpness.parts import of_part as of_part
from optax_sam.sharpness.problem import NotFiniteError as NotFiniteError
from optax_sam.sharpness.products import finite_difference_error as finite_difference_error
from optax_sam.sharpness.products import gauss_newton_vector_product as gauss_newton_vector_product
from optax_sam.sharpness.products import hessian_vector_product as hessian_vector_product
from optax_sam.sharpness.radius import RADII as RADII
from optax_sam.sharpness.radius import RadiusTest as RadiusTest
from optax_sam.sharpness.radius import radius_test as radius_test
from optax_sam.sharpness.spectrum import SpectralDensity as SpectralDensity
from optax_sam.sharpness.spectrum import Trace as Trace
from optax_sam.sharpness.spectrum import spectral_density as spectral_density
from optax_sam.sharpness.spectrum import trace as trace
from optax_sam.sharpness.worst import normalized_logits as normalized_logits
from optax_sam.sharpness.worst import worst_case_sharpness as worst_case_sharpness
