"""Writes the small pictures of docs/gallery.md: `python docs/drawing/thumbnails.py`."""

import base64
import io
from pathlib import Path

import nbformat
from PIL import Image

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs/images/thumbnails"
SIZE = (480, 320)


def main() -> None:
    """One for each notebook, and one for each picture that the gallery shows."""
    FOLDER.mkdir(exist_ok=True)
    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        save(last_picture(notebook), notebook.stem)
    for picture in sorted((ROOT / "docs/images").glob("*.png")):
        save(Image.open(picture), picture.stem)


def last_picture(notebook: Path) -> Image.Image:
    """What the notebook ends with."""
    cells = nbformat.read(notebook, as_version=4).cells
    data = [output.get("data", {}) for cell in cells for output in cell.get("outputs", [])]
    pictures = [each["image/png"] for each in data if "image/png" in each]
    return Image.open(io.BytesIO(base64.b64decode(pictures[-1])))


def save(picture: Image.Image, name: str) -> None:
    """Shrunk to fit, in the middle of a white card."""
    card = Image.new("RGB", SIZE, "white")
    small = picture.convert("RGBA")
    small.thumbnail(SIZE)
    card.paste(small, ((SIZE[0] - small.width) // 2, (SIZE[1] - small.height) // 2), small)
    card.quantize(64).save(FOLDER / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
