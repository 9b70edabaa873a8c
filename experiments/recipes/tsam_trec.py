"""TSAM on TREC's questions, in six classes: a small transformer from scratch."""

from experiments.recipes import TSAM, Recipe
from experiments.settings import Settings
from experiments.settings.of_method import MethodSettings

RECIPE = Recipe(
    paper=TSAM,
    source="nothing but the method's defaults is the authors': github.com/litian96/TSAM, b318956",
    differs="TREC in place of GLUE, and a small network: it shows the method, not the paper's result.",
    published="none",
    settings=Settings(
        data="trec",
        epochs=10,
        batch_size=64,
        optimizer="adamw",
        method="tsam",
        method_settings=MethodSettings(rho=0.05, tilt=1.0, num_samples=3, radius=1.0, noise_scale=1.0),
    ),
)
