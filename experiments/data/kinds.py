"""What a data set shows, told from its name before anything is read."""

from typing import Literal

Kind = Literal["image", "text", "pose"]

POSES = ("stick_figures", "mpii")
TEXTS = ("glue", "trec", "imdb_reviews", "ag_news_subset")


def kind_of(data: str) -> Kind:
    """Images, unless the name is one of the others'."""
    name = data.partition("/")[0]
    return "pose" if name in POSES else "text" if name in TEXTS else "image"
