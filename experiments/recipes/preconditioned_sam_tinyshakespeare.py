"""The preconditioned ascent on Shakespeare, character by character, before AdamW."""

from experiments.recipes import FUNCTIONAL_SAM, Recipe
from experiments.settings import Settings
from experiments.settings.of_method import MethodSettings

RECIPE = Recipe(
    paper=FUNCTIONAL_SAM,
    source="nothing is the authors', whose numbers could not be read: the middle of the grids that "
    "experiments/evidence/tasks.py searches for this text",
    differs="A small decoder of characters in place of language models of 24 million to 1.2 billion "
    "parameters. SAM's path through the logits is kept: the outputs of a run are not at the method's hand.",
    ours="test loss 1.705 ± 0.009 (n = 3, mean and standard deviation: python -m experiments.train "
    "recipe:preconditioned-sam-tinyshakespeare --seed S, S = 0, 1, 2; one of two CPU cores, jax 0.10.2)",
    settings=Settings(
        data="tinyshakespeare",
        model="decoder",
        epochs=4,
        batch_size=4,
        optimizer="adamw",
        learning_rate=5e-3,
        weight_decay=0.1,
        method="preconditioned_sam",
        method_settings=MethodSettings(rho=0.05),
    ),
)
