"""vSAM on CIFAR-10 with ResNet-18, as the authors' script trains it."""

from experiments.recipes import VSAM, Recipe
from experiments.settings import Settings
from experiments.settings.of_method import MethodSettings

STEPS = 50_000 // 128  # of an epoch

RECIPE = Recipe(
    paper=VSAM,
    source="github.com/ajiaaa/vSAM, 895e0e5: defaults of train_vsam.py; data/cifar.py",
    differs="The ten tensors whose norms steer the number of perturbed steps are the last in PyTorch's "
    "order there, the last leaves of the sorted tree of parameters here.",
    settings=Settings(
        data="cifar10",
        model="resnet18",
        epochs=200,
        batch_size=128,
        learning_rate=0.05,
        weight_decay=1e-3,
        augment=("crop", "flip", "cutout"),
        label_smoothing=0.1 * 10 / 9,  # the authors spread 0.1 over the other 9 classes
        method="vsam",
        method_settings=MethodSettings(
            rho=0.05,
            window=50,
            slices=5,
            max_rate=0.8,
            rate_gain=(0.13, 0.13),
            reuse_decay=0.7,
            reuse_steps=6,
            warmup_steps=3 * STEPS,
            tail=10,
        ),
    ),
)
