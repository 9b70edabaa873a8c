"""Sentences as numbers, and the transformer that reads them."""

from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.data.arrays import Data, fold
from experiments.data.text import LENGTH, VOCABULARY, sentence_of, shortened, texts
from experiments.models.text import TextTransformer
from experiments.settings import SettingsError

KEY = jax.random.key(0)
TRAIN = ["The film is n't good .", "Is the FILM good ?", "bad , bad film ?", "n't bad ; ' "]
TEST = ["is the rest good ?", "", "film " * (LENGTH + 9)]


class Source(list):
    def __getitems__(self, numbers):
        return [self[number] for number in numbers]


def builder(text="sentence", label="label", splits=("train", "validation", "test"), second="label-fine"):
    """A set like GLUE's: nothing is known of the labels of its test part."""
    from tensorflow_datasets.core.features import ClassLabel, Text

    def source(split):
        sentences = {"train": TRAIN, "validation": TEST}[split]
        rows = [{text: sentence.encode(), label: i % 2} for i, sentence in enumerate(sentences)]
        return Source(rows)

    features = {text: Text(), label: ClassLabel(num_classes=2)}
    features[second] = ClassLabel(num_classes=5) if second == "label-fine" else Text()
    info = SimpleNamespace(features=features, splits=splits)
    return SimpleNamespace(name="glue", info=info, as_data_source=source)


@pytest.mark.parametrize(("text", "label"), [("sentence", "label"), ("question", "label-coarse")])
def test_words_of_the_training_part_are_numbered(text, label):
    data = texts(builder(text, label), "glue/sst2")
    assert data.num_classes == 2 and data.test["label"].tolist() == [0, 1, 0]
    assert data.train["tokens"].shape == (4, LENGTH) and data.train["tokens"].dtype == np.int32
    # Words in two or more sentences, in the order of the alphabet; all others are 1.
    number = {word: 2 + n for n, word in enumerate(["?", "bad", "film", "good", "is", "n't", "the"])}
    for part, sentences in ((data.train, TRAIN), (data.test, TEST)):
        for row, sentence in zip(part["tokens"], sentences, strict=True):
            expected = [number.get(word, 1) for word in sentence.lower().split()][:LENGTH]
            assert row.tolist() == expected + [0] * (LENGTH - len(expected))


def test_phrases_are_held_out_with_their_sentence():
    """Of each of 30 sentences, the whole and three phrases."""
    rng = np.random.default_rng(0)
    sentences = np.arange(1, 241, dtype=np.int32).reshape(30, 8)
    phrases = [row[a:b] for row in sentences for a, b in ((0, 8), (0, 3), (2, 7), (4, 5))]
    tokens = np.zeros((120, 8), np.int32)
    for row, phrase in zip(tokens, rng.permutation(np.array(phrases, object)), strict=True):
        row[: len(phrase)] = phrase
    groups = sentence_of(tokens)
    assert len({*groups}) == 30 and {*np.bincount(groups)} == {0, 4}
    data = Data({"tokens": tokens}, {"tokens": tokens}, 2, groups=groups)
    parts = [fold(data, number, 5) for number in range(5)]
    for part in parts:
        seen, held_out = ({*rows[rows > 0].tolist()} for rows in (part.train["tokens"], part.test["tokens"]))
        assert held_out and not seen & held_out
    assert sum(len(part.test["tokens"]) for part in parts) == 120


def test_columns_of_padding_alone_are_cut():
    tokens = np.array([[5, 7, 0, 0, 0], [4, 0, 0, 0, 0], [2, 3, 9, 0, 0]], np.int32)
    found = shortened({"tokens": tokens, "label": np.arange(3)})
    assert found["tokens"].tolist() == [[5, 7, 0], [4, 0, 0], [2, 3, 9]] and found["label"].tolist() == [
        0,
        1,
        2,
    ]


@pytest.mark.parametrize("wrong", [{"splits": ("train",)}, {"label": "class"}, {"second": "question"}])
def test_sets_of_pairs_or_without_labels_or_test_part_are_refused(wrong):
    with pytest.raises(SettingsError, match="--data paws is not a set of single sentences .*: give one"):
        texts(builder(**wrong), "paws")


def test_real_sentences(tfds_dir):
    import tensorflow_datasets as tfds

    if not (Path(tfds_dir) / "trec").is_dir():
        pytest.skip("no prepared TREC on this machine; the sentences written out above cover the reading")
    data = texts(tfds.builder("trec", data_dir=tfds_dir), "trec")
    assert data.num_classes == 6 and (len(data.train["label"]), len(data.test["label"])) == (5452, 500)
    for part in (data.train, data.test):
        assert set(part["label"]) == set(range(6))
        assert 0 <= part["tokens"].min() and part["tokens"].max() < VOCABULARY
        assert (part["tokens"] == 1).mean(where=part["tokens"] > 0) < 0.15  # unknown words


# The network

NETWORK = TextTransformer(num_classes=2, width=8, heads=2, layers=1, vocabulary=20)
TOKENS = np.zeros((12, 7), np.int32)
TOKENS[:, :4] = np.random.default_rng(0).integers(1, 20, (12, 4))
TOKENS[0] = 0  # no word at all
LABELS = TOKENS[:, 0] % 2


def init():
    return jax.jit(lambda: NETWORK.init(KEY, TOKENS, train=False)["params"])()


def loss(params, tokens):
    logits = NETWORK.apply({"params": params}, tokens, train=True, rngs={"dropout": KEY})
    return optax.softmax_cross_entropy_with_integer_labels(logits, LABELS).mean()


def test_padding_has_no_influence():
    params = init()
    apply = jax.jit(lambda params, tokens: NETWORK.apply({"params": params}, tokens, train=False))
    logits = apply(params, TOKENS)
    assert jnp.isfinite(logits).all()
    shorter = params | {"places": params["places"][:, :4]}
    np.testing.assert_allclose(apply(shorter, TOKENS[:, :4]), logits, atol=1e-5)
    grads = jax.jit(jax.grad(loss))(params, TOKENS)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    assert not grads["Embed_0"]["embedding"][0].any() and not grads["places"][:, 4:].any()
    assert (grads["places"][:, :4] != 0).all()


def test_a_few_steps_lower_the_loss():
    optimizer = optax.adam(0.01)

    @jax.jit
    def train(params):
        def step(carry, _):
            params, state = carry
            value, grads = jax.value_and_grad(loss)(params, TOKENS)
            updates, state = optimizer.update(grads, state)
            return (optax.apply_updates(params, updates), state), value

        return jax.lax.scan(step, (params, optimizer.init(params)), length=30)[1]

    values = train(init())
    assert values[-1] < 0.5 * values[0]
