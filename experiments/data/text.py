"""Sentences of a TFDS set as numbered words or word pieces, read into memory."""

from functools import partial
from typing import Any

import numpy as np

from experiments.data import minilm
from experiments.data.arrays import Batch, Data
from experiments.data.prepared import test_split
from experiments.settings import SettingsError

VOCABULARY = 8192
"""Numbers of words; 0 is padding, 1 is any word that the training part does not have twice."""
LENGTH = 32
"""Words that are read of a sentence: all of them in 99.9 % of TREC's questions, in 90 % of SST-2's
validation sentences and in 98 % of its training phrases."""

PHRASES = "glue/sst2"
"""Its training examples are sentences and phrases cut out of them."""

# Treebank text is cut where it already is ("does n't", "film 's"), and every mark is a word: a question
# mark says something, and so does an exclamation mark.
WORD = r"n't|'?\w+|[^\w\s]+"


def texts(builder: Any, name: str, model: str | None = None) -> Data:
    """All sentences of both parts, in the tokens of a network.

    Args:
      builder: of a TFDS set.
      name: of the set, for messages.
      model: minilm has tokens of its own; those of all others are the words of the training part.

    Returns:
      `tokens` int32 [n, length], `label` int32 [n].

    Raises:
      SettingsError: the set is not one of sentences with labels, has no words, or minilm's package is not
        installed.
    """
    text, label = _features(builder, name)
    train, test = (_read(builder, split, text, label) for split in ("train", test_split(builder)))
    number = minilm.tokens if model == "minilm" else partial(tokens, words=words_of(train[0], name))
    train, test = ({"tokens": number(part[0]), "label": part[1]} for part in (train, test))
    groups = None
    if name == PHRASES:
        found = train["tokens"]
        groups = sentence_of(minilm.without_marks(found) if model == "minilm" else found)
    return Data(train, test, builder.info.features[label].num_classes, groups=groups)


def sentence_of(phrases: np.ndarray) -> np.ndarray:
    """The number of a longest phrase in which each phrase stands whole, int [n].

    Args:
      phrases: tokens, 0 where there is none, [n, length].
    """
    found: dict[bytes, int] = {}
    lengths = (phrases > 0).sum(1)
    sentences = np.zeros(len(phrases), int)
    for number in np.argsort(-lengths, kind="stable"):
        words = phrases[number, : lengths[number]]
        sentences[number] = found.get(words.tobytes(), number)
        if sentences[number] == number:
            for start in range(len(words)):
                for end in range(start + 1, len(words) + 1):
                    found.setdefault(words[start:end].tobytes(), int(number))
    return sentences


def shortened(part: Batch) -> Batch:
    """Sentences without the columns in which all of them have padding."""
    length = int((part["tokens"] > 0).any(axis=0).sum())
    return part | {"tokens": part["tokens"][:, :length]}


def sentences(builder: Any, name: str) -> tuple[list[str], list[str]]:
    """The sentences of the training and of the test part."""
    text, label = _features(builder, name)
    train, test = (_read(builder, split, text, label)[0] for split in ("train", test_split(builder)))
    return train, test


def words_of(sentences: list[str], name: str) -> Any:
    """A fitted CountVectorizer, which knows the words that are not alone."""
    from sklearn.feature_extraction.text import CountVectorizer  # here, because it takes a second to load

    try:
        return CountVectorizer(token_pattern=WORD, max_features=VOCABULARY - 2, min_df=2).fit(sentences)
    except ValueError as error:
        raise SettingsError(
            f"--data {name} has no word in two of its training sentences: give a larger set"
        ) from error


def tokens(sentences: list[str], words: Any) -> np.ndarray:
    """Numbers of the first LENGTH words of each sentence, then zeros: int32 [n, LENGTH]."""
    split = words.build_analyzer()
    found = np.zeros((len(sentences), LENGTH), np.int32)
    for row, sentence in zip(found, sentences, strict=True):
        numbers = [words.vocabulary_.get(word, -1) + 2 for word in split(sentence)[:LENGTH]]
        row[: len(numbers)] = numbers
    return found


def _features(builder: Any, name: str) -> tuple[str, str]:
    """The names of the sentence and of the label."""
    from tensorflow_datasets.core.features import ClassLabel, Text  # here, because images do without it

    features = builder.info.features
    text = [key for key, feature in features.items() if isinstance(feature, Text)]
    classes = [key for key, feature in features.items() if isinstance(feature, ClassLabel)]
    label = [key for key in ("label", "label-coarse") if key in classes]
    if len(text) != 1 or not label or not {"train", test_split(builder)} <= set(builder.info.splits):
        raise SettingsError(
            f"--data {name} is not a set of single sentences with labels, for training and test: give one "
            "that is, such as trec or glue/sst2"
        )
    return text[0], label[0]


def _read(builder: Any, split: str, text: str, label: str) -> tuple[list[str], np.ndarray]:
    source = builder.as_data_source(split=split)
    records: list[Batch] = []
    for start in range(0, len(source), 1000):  # blocks are twice as fast as single records
        records += source.__getitems__(range(start, min(start + 1000, len(source))))
    labels = np.array([record[label] for record in records], np.int32)
    return [record[text].decode() for record in records], labels
