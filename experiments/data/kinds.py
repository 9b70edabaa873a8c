"""What a data set shows, told from its name before anything is read."""

from typing import Literal

Kind = Literal["image", "text", "pose", "series", "forecast", "characters"]

POSES = ("stick_figures", "mpii")
TEXTS = ("glue", "trec", "imdb_reviews", "ag_news_subset")
OTHERS: dict[str, Kind] = {
    "mnist1d": "series",
    "etth1": "forecast",
    "etth2": "forecast",
    "tinyshakespeare": "characters",
}

Metric = Literal["accuracy", "loss"]


def kind_of(data: str) -> Kind:
    """Images, unless the name is one of the others'."""
    name = data.partition("/")[0]
    return OTHERS.get(name) or ("pose" if name in POSES else "text" if name in TEXTS else "image")


def metric_of(data: str) -> Metric:
    """What networks are judged by: the share that is right, or the loss where nothing is right or wrong."""
    return "loss" if kind_of(data) in ("forecast", "characters") else "accuracy"
