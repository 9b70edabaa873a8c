"""AUSAM for human poses: SimCC on MPII; --data-dir names the folder with MPII's files."""

from experiments.recipes import AUSAM, Recipe
from experiments.settings import Settings
from experiments.settings.of_method import MethodSettings

STEPS = 25_000 // 64  # of an epoch, about: MPII's people are counted when they are read

RECIPE = Recipe(
    paper=AUSAM,
    source="that the paper trains SimCC on MPII: the paper, quoted on acmrep2026.k117.org; numbers of the "
    "method: github.com/ajiaaa/AUSAM, 13ee7bf: defaults of AUSAM/train.py",
    differs="Everything but the method is ours, since the paper's settings are not known: optimizer, rate, "
    "batch, epochs. A small network at 64 x 64 pixels; every eighth image with joints is for testing; "
    "people are moved at random, but neither mirrored nor turned.",
    settings=Settings(
        data="mpii",
        model="simcc",
        epochs=200,
        batch_size=64,
        optimizer="adamw",
        learning_rate=1e-3,
        weight_decay=0.01,
        method="ausam",
        method_settings=MethodSettings(
            rho=0.1, fraction=0.5, score_range=(0.1, 0.5), ramp_steps=30 * STEPS, score="loss_difference"
        ),
    ),
)
