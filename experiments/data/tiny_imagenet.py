"""Tiny ImageNet as a TFDS set, which TFDS itself does not have; importing this file makes it known there."""

import zipfile
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import tensorflow_datasets as tfds

URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"


class TinyImagenet(tfds.core.GeneratorBasedBuilder):
    """200 classes of photographs, 64 x 64 pixels: 100,000 for training and 10,000 for validation.

    The test part is left out, because it has no labels.
    """

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            # The grey ones are decoded to three equal channels.
            "image": tfds.features.Image(shape=(64, 64, 3), encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(num_classes=200),
        }
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
            homepage="http://cs231n.stanford.edu",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        archive: Any = dl_manager.download(URL)
        return {part: self._generate_examples(archive, part) for part in ("train", "validation")}

    def _generate_examples(self, archive: Any, part: str) -> Iterator[tuple[str, dict[str, Any]]]:
        with zipfile.ZipFile(archive) as files:
            labels = {word: number for number, word in enumerate(_lines(files, "wnids.txt"))}
            words = _train_words(files) if part == "train" else _validation_words(files)
            for name, word in words.items():
                yield PurePosixPath(name).name, {"image": files.read(name), "label": labels[word]}


def _train_words(files: zipfile.ZipFile) -> dict[str, str]:
    """The class of each image: train/n01443537/images/n01443537_0.JPEG."""
    paths = [PurePosixPath(name) for name in files.namelist()]
    return {
        str(path): path.parts[2] for path in paths if path.parts[1:2] == ("train",) and path.suffix == ".JPEG"
    }


def _validation_words(files: zipfile.ZipFile) -> dict[str, str]:
    """The class of each image, by lines such as: val_0.JPEG, n03444034, and a box, between tabs."""
    rows = [line.split("\t") for line in _lines(files, "val/val_annotations.txt")]
    return {f"tiny-imagenet-200/val/images/{name}": word for name, word, *_ in rows}


def _lines(files: zipfile.ZipFile, name: str) -> list[str]:
    return files.read(f"tiny-imagenet-200/{name}").decode().splitlines()
