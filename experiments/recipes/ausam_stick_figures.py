"""AUSAM for the poses of drawn figures: SimCC without a download."""

from experiments.recipes import AUSAM, Recipe
from experiments.settings import Settings
from experiments.settings.of_method import MethodSettings

STEPS = 6000 // 60  # of an epoch

RECIPE = Recipe(
    paper=AUSAM,
    source="nothing but the method's numbers is the authors': github.com/ajiaaa/AUSAM, 13ee7bf",
    differs="Drawn figures in place of MPII: it shows the method, not the paper's result.",
    published="none",
    ours="75.5 ± 0.8 % of a figure's joints, PCKh@0.5 (n = 3, mean and standard deviation: python -m "
    "experiments.train recipe:ausam-stick-figures --seed S, S = 0, 1, 2; two CPU cores, jax 0.10.2)",
    cost="1.3 minutes with compilation, on two CPU cores that had other work too",
    settings=Settings(
        data="stick_figures",
        epochs=10,
        batch_size=60,
        optimizer="adamw",
        method="ausam",
        method_settings=MethodSettings(rho=0.1, fraction=0.5, score_range=(0.1, 0.5), ramp_steps=2 * STEPS),
    ),
)
