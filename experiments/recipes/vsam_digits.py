"""vSAM on scikit-learn's digits: seconds on a laptop."""

from experiments.recipes import VSAM, Recipe
from experiments.settings import Settings

RECIPE = Recipe(
    paper=VSAM,
    source="experiments/tuned/digits.json: window, radius, rate and decay by cross-validation",
    differs="Another data set and a small network: it shows the method, not the paper's result.",
    published="none",
    ours="95.0 ± 1.1 % (n = 3, mean and standard deviation: python -m experiments.train recipe:vsam-digits "
    "--seed S, S = 0, 1, 2; two CPU cores, jax 0.10.2)",
    cost="0.2 minutes with compilation, on two CPU cores",
    settings=Settings(data="digits", method="vsam"),
)
