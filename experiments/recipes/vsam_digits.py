"""vSAM on scikit-learn's digits: seconds on a laptop."""

from experiments.recipes import VSAM, Recipe
from experiments.settings import Settings

RECIPE = Recipe(
    paper=VSAM,
    source="experiments/tuned/digits.json: window, radius, rate and decay by cross-validation",
    differs="Another data set and a small network: it shows the method, not the paper's result.",
    settings=Settings(data="digits", method="vsam"),
)
