"""Look-LayerSAM on ImageNet with ViT-S/16: huge batches by LAMB, for many accelerators."""

from experiments.recipes import LOOKSAM, Recipe
from experiments.settings import Settings
from experiments.settings.of_method import MethodSettings

RECIPE = Recipe(
    paper=LOOKSAM,
    source="notes on the paper, and re-implementations (no code of the authors is known)",
    differs="Epochs and warm-up are not known: 300, as is usual for these networks, and 30. ViT-S/16 stands "
    "for ViT-B/16. Random crops and flips only.",
    published="75.6 % with ViT-B/16 at this batch (read in notes)",
    settings=Settings(
        data="imagenet2012",
        model="vit_s",
        epochs=300,
        warmup_epochs=30.0,
        batch_size=65_536,
        optimizer="lamb",
        learning_rate=0.01,
        weight_decay=0.1,
        augment=("flip",),  # crops are cut as the images are read
        method="look_layersam",
        method_settings=MethodSettings(rho=0.1, every_k=5, alpha=0.7),
    ),
)
