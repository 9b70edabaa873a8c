"""The networks, by their names on the command line."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from experiments.data import Data
from experiments.data.kinds import Kind, kind_of
from experiments.data.minilm import check_installed
from experiments.models import minilm, small_nnx
from experiments.models.adapted import Adapted
from experiments.models.decoder import Decoder
from experiments.models.mobile_net import MobileNet
from experiments.models.network import NNX, Linen, Network
from experiments.models.pyramid_net import PyramidNet
from experiments.models.quantized import Quantized
from experiments.models.resnet import ResNet
from experiments.models.samformer import SAMformer
from experiments.models.simcc import SimCC
from experiments.models.small import Perceptron, SmallConvNet, StridedConvNet
from experiments.models.text import TextTransformer
from experiments.models.vit import VisionTransformer
from experiments.models.wide_resnet import WideResNet
from experiments.settings import Settings, SettingsError, Setup

MODELS: dict[str, Callable[..., nn.Module]] = {
    "conv": SmallConvNet,
    "strided": partial(StridedConvNet, widths=(32, 64, 128), sizes=(3, 3, 3)),
    "resnet8": partial(ResNet, blocks=(1, 1, 1), width=16),
    "resnet18": partial(ResNet, blocks=(2, 2, 2, 2)),
    "resnet50": partial(ResNet, blocks=(3, 4, 6, 3), bottleneck=True),
    "wrn16_8": partial(WideResNet, depth=16, widen=8),
    "wrn28_10": partial(WideResNet, depth=28, widen=10),
    "pyramidnet110": partial(PyramidNet, depth=110, widen=270),
    "mobilenet": MobileNet,
    "vit_ti": partial(VisionTransformer, width=192, heads=3),
    "vit_s": partial(VisionTransformer, width=384, heads=6),
    "simcc": SimCC,
    "text": TextTransformer,
    "minilm": minilm.MiniLM,
    "mlp": Perceptron,
    "conv1d": StridedConvNet,
    "samformer": SAMformer,
    "decoder": Decoder,
    **{f"mlp{width}": partial(Perceptron, widths=(width, width)) for width in (32, 64, 128, 512, 1024, 2048)},
}

# What each is for, where that is not images alone.
SUITING: dict[str, tuple[Kind, ...]] = {
    "simcc": ("pose",),
    "text": ("text",),
    "minilm": ("text",),
    "mlp": ("series", "image"),
    "conv1d": ("series",),
    "samformer": ("forecast",),
    "decoder": ("characters",),
}
SUITING |= {name: SUITING["mlp"] for name in MODELS if name.startswith("mlp")}

# Those with another first layer for ImageNet's images than for small ones.
WITH_STEMS = ("resnet18", "resnet50", "mobilenet")
SMALL_SIDE = 64

# Parts that begin with published weights, and that a run with adapters does not train.
PRETRAINED = {"minilm": ("encoder",)}

# Those that do not train with few bits, and what to give instead.
UNQUANTIZED = {"conv_nnx": "conv", "minilm": "text"}


def make(settings: Settings, data: Data) -> Network:
    """The network of a run, for its data."""
    assert settings.model  # filled in by the data set's default
    dtype, bits = jnp.dtype(settings.dtype), settings.quantize_bits
    image = data.train.get("image")
    side, channels = (0, 0) if image is None else (image.shape[1], image.shape[-1])
    if settings.model == "conv_nnx":
        return NNX(partial(small_nnx.SmallConvNet, data.num_classes, channels, dtype=dtype))
    network = module(settings.model, data.num_classes, side, dtype)
    if settings.adapter_rank:
        parts = PRETRAINED[settings.model]
        return Adapted(network, settings.adapter_rank, parts, paired=settings.method == "bi_lora")
    return Quantized(network, bits) if bits else Linen(network)


def check_model(settings: Setup) -> None:
    """Refuses a network that is not known, not for these data, or not installed."""
    names = (*MODELS, "conv_nnx")
    if settings.model not in names:
        raise SettingsError(f"--model {settings.model} is not known: give {', '.join(names)}")
    instead = UNQUANTIZED.get(settings.model)
    if instead and settings.quantize_bits:
        raise SettingsError(
            f"--quantize-bits {settings.quantize_bits} is not for --model {settings.model}: give {instead}"
        )
    if settings.adapter_rank and settings.model not in PRETRAINED:
        raise SettingsError(
            f"--adapter-rank {settings.adapter_rank} is not for --model {settings.model}, which is not "
            f"pretrained: give {', '.join(PRETRAINED)}"
        )
    kind = kind_of(settings.data)
    suiting = [name for name in names if kind in SUITING.get(name, ("image",))]
    if settings.model not in suiting:
        raise SettingsError(
            f"--model {settings.model} is not for --data {settings.data}: give {', '.join(suiting)}"
        )
    if settings.model == "minilm":
        check_installed()


def pretrained(settings: Setup) -> dict[str, Any]:
    """What takes the place of a network's drawn parameters, by the names of its parts; mostly nothing."""
    return minilm.pretrained() if settings.model == "minilm" and not settings.adapter_rank else {}


def frozen(settings: Setup) -> dict[str, Any]:
    """Parts of a network that its run does not train: where adapters are trained, the pretrained ones."""
    return minilm.pretrained() if settings.adapter_rank else {}


def module(name: str, num_classes: int, side: int, dtype: Any) -> nn.Module:
    """A Linen network, for images of this side in pixels if it is for images, computing in `dtype`."""
    stem = {"small_images": side <= SMALL_SIDE} if name in WITH_STEMS else {}
    return MODELS[name](num_classes=num_classes, dtype=dtype, **stem)
