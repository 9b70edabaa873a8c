"""MiniLM (Wang et al., 2020), a small BERT (Devlin et al., 2018): pretrained, with a new linear layer."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from experiments.data.minilm import file_of, imported

WIDTH, HEADS, LAYERS = 384, 12, 6
VOCABULARY, PLACES, TYPES = 30522, 512, 2
RATE = 0.1
"""Share of the features, and of the attention, that dropout zeroes in training."""

# The faster variance is a difference of large numbers, and 1e-12 does not hide its error.
Norm = partial(nn.LayerNorm, epsilon=1e-12, use_fast_variance=False)


class Layer(nn.Module):
    """Attention and a perceptron, each beside a shortcut and before a layer norm, with dropout."""

    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, mask: jax.Array) -> jax.Array:
        """Maps tokens [n, length, WIDTH] to the same shape; `mask` says which tokens are looked at."""
        dropout = nn.Dropout(RATE, deterministic=not train)
        attention: Any = nn.MultiHeadDotProductAttention(
            HEADS,
            dtype=self.dtype,
            dropout_rate=RATE,
            broadcast_dropout=False,
            deterministic=not train,
            name="attention",
        )
        x = Norm(dtype=self.dtype, name="attention_norm")(x + dropout(attention(x, mask=mask)))
        y = nn.gelu(nn.Dense(4 * WIDTH, dtype=self.dtype, name="hidden")(x), approximate=False)
        y = nn.Dense(WIDTH, dtype=self.dtype, name="output")(y)
        return Norm(dtype=self.dtype, name="output_norm")(x + dropout(y))


class Encoder(nn.Module):
    """BERT without the layer behind its last features.

    Attributes:
      dtype: of the computation; parameters are float32.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: jax.Array, train: bool) -> jax.Array:
        """Maps integers [n, length], 0 being padding, to features [n, length, WIDTH]."""
        # All tokens are of type 0, since a sentence stands alone.
        kinds = (("words", VOCABULARY, tokens), ("types", TYPES, jnp.zeros_like(tokens)))
        kinds += (("places", PLACES, jnp.arange(tokens.shape[1])[None]),)
        parts = [nn.Embed(count, WIDTH, dtype=self.dtype, name=name)(x) for name, count, x in kinds]
        x = Norm(dtype=self.dtype, name="norm")(sum(parts))
        x = nn.Dropout(RATE, deterministic=not train)(x)
        for number in range(LAYERS):
            x = Layer(self.dtype, name=f"layer{number}")(x, train, mask=(tokens > 0)[:, None, None])
        return x


class MiniLM(nn.Module):
    """The encoder, the mean over the real tokens, and a linear layer.

    In training it draws what it drops from the random numbers "dropout".

    Attributes:
      num_classes: number of logits.
      dtype: of the computation; parameters are float32.
    """

    num_classes: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: jax.Array, train: bool) -> jax.Array:
        """Maps integers [n, length], 0 being padding, to logits [n, num_classes]."""
        x = mean_of_real(Encoder(self.dtype, name="encoder")(tokens, train), tokens)
        x = nn.Dropout(RATE, deterministic=not train)(x)
        return nn.Dense(self.num_classes, dtype=self.dtype, name="head")(x)


def mean_of_real(x: jax.Array, tokens: jax.Array) -> jax.Array:
    """The mean of features [n, length, width] over the tokens that are no padding: [n, width]."""
    real = tokens > 0
    count = jnp.maximum(real.sum(1, keepdims=True), 1).astype(x.dtype)
    return jnp.where(real[..., None], x, 0).sum(1) / count


def pretrained() -> dict[str, Any]:
    """The published weights of the encoder as parameters of MiniLM, float32: {"encoder": ...}.

    Raises:
      SettingsError: the extra `minilm` is not installed.
    """
    weights = imported("safetensors.numpy").load_file(file_of("model.safetensors"))
    embeddings = {
        "words": "word_embeddings",
        "types": "token_type_embeddings",
        "places": "position_embeddings",
    }
    return {
        "encoder": {
            name: {"embedding": weights[f"embeddings.{theirs}.weight"]} for name, theirs in embeddings.items()
        }
        | {"norm": _norm(weights, "embeddings.LayerNorm")}
        | {f"layer{number}": _layer(weights, f"encoder.layer.{number}") for number in range(LAYERS)}
    }


def _layer(weights: Any, name: str) -> dict[str, Any]:
    heads = {part: _dense(weights, f"{name}.attention.self.{part}") for part in ("query", "key", "value")}
    split = {
        part: {"kernel": dense["kernel"].reshape(WIDTH, HEADS, -1), "bias": dense["bias"].reshape(HEADS, -1)}
        for part, dense in heads.items()
    }
    joined = _dense(weights, f"{name}.attention.output.dense")
    return {
        "attention": split | {"out": joined | {"kernel": joined["kernel"].reshape(HEADS, -1, WIDTH)}},
        "attention_norm": _norm(weights, f"{name}.attention.output.LayerNorm"),
        "hidden": _dense(weights, f"{name}.intermediate.dense"),
        "output": _dense(weights, f"{name}.output.dense"),
        "output_norm": _norm(weights, f"{name}.output.LayerNorm"),
    }


def _dense(weights: Any, name: str) -> dict[str, Any]:
    return {"kernel": weights[f"{name}.weight"].T, "bias": weights[f"{name}.bias"]}


def _norm(weights: Any, name: str) -> dict[str, Any]:
    return {"scale": weights[f"{name}.weight"], "bias": weights[f"{name}.bias"]}
