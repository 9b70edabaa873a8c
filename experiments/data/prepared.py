"""TFDS sets on this machine: found, or downloaded; what is missing is said in one line."""

import logging
import os
import socket
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from experiments.settings import SettingsError


def builder_of(name: str, data_dir: Path | None) -> Any:
    """The TFDS builder of a set whose files are there.

    Raises:
      SettingsError: the set is not known, not in the folder, or cannot be downloaded.
    """
    import tensorflow_datasets as tfds  # here, because the digits do without it
    import tensorflow_datasets.text  # noqa: F401  # makes GLUE known to TFDS, which loads its module late

    import experiments.data.tiny_imagenet  # noqa: F401  # makes it known to TFDS

    logging.getLogger("absl").setLevel(logging.ERROR)  # TFDS recommends OpenCV at every start
    try:
        tfds.builder_cls(name.partition("/")[0])
    except tfds.core.registered.DatasetNotFoundError:
        raise SettingsError(
            f"--data {name} is not known: give digits, stick_figures, mpii, or a TFDS set, such as cifar10"
        ) from None
    given = data_dir or os.environ.get("TFDS_DATA_DIR")
    if given:
        _check(name, Path(given), "--data-dir" if data_dir else "TFDS_DATA_DIR")
    builder = tfds.builder(name, data_dir=given)
    if not builder.is_prepared():
        _download(builder, name)
    return builder


def test_split(builder: Any) -> str:
    """The part that is measured on: the test parts of GLUE and of ImageNet have no labels."""
    labelled = builder.name not in ("glue", "imagenet2012")
    return "test" if "test" in builder.info.splits and labelled else "validation"


def _check(name: str, folder: Path, setting: str) -> None:
    # TFDS would start a download here, or complain about file formats.
    if not folder.is_dir():
        raise SettingsError(f"{setting} {folder} is not a folder: give the one that holds {name}")
    if not any((folder / name).glob("**/dataset_info.json")):
        names = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
        raise SettingsError(
            f"{setting} {folder} holds no prepared {name}, only {names}: give another folder, or "
            f"none to download {name}"
        )


def _download(builder: Any, name: str) -> None:
    if not _online(builder.info.homepage):
        raise SettingsError(
            f"--data {name} is not in {builder.data_path.parents[1]}, and cannot be downloaded without a "
            "network: prepare it elsewhere and give its folder as --data-dir"
        )
    try:
        builder.download_and_prepare(file_format="array_record")
    except Exception as error:  # anything from the network, the disk or a site's own format
        reason = " ".join(str(error).split())[:200]
        raise SettingsError(
            f"--data {name} cannot be downloaded ({reason}): prepare it elsewhere and give its "
            "folder as --data-dir"
        ) from error


def _online(page: str | None) -> bool:
    """Whether names of hosts are known here, of this page or of TFDS's own: else it would try for minutes."""
    hosts = [urllib.parse.urlsplit(page or "").hostname, "storage.googleapis.com"]
    return bool(urllib.request.getproxies()) or any(map(_resolves, filter(None, hosts)))


def _resolves(host: str) -> bool:
    try:
        return bool(socket.getaddrinfo(host, 443))
    except OSError:
        return False
