"""Draws the diagrams of the documentation: `python docs/drawing/diagrams.py`."""

from pathlib import Path

import matplotlib

matplotlib.use("agg")

from matplotlib import pyplot as plt  # noqa: E402 (after the choice of a backend)
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch  # noqa: E402

FOLDER = Path(__file__).parents[1] / "images"
INK, MUTED = "#222222", "#777777"
PIECE, ORACLE, GIVEN = "#dbe9f6", "#fde3c8", "#eeeeee"
plt.rcParams.update({"font.size": 11, "svg.hashsalt": "optax_sam", "font.family": "DejaVu Sans"})

Point = tuple[float, float]


class Diagram:
    """Boxes and arrows on a plane whose unit is a tenth of an inch."""

    def __init__(self, width: float, height: float):
        self.figure, self.axes = plt.subplots(figsize=(width / 10, height / 10))
        self.axes.set(xlim=(0, width), ylim=(0, height), aspect="equal")
        self.axes.set_axis_off()
        self.figure.subplots_adjust(0, 0, 1, 1)

    def box(self, at: Point, size: Point, title: str, lines: str = "", colour: str = PIECE) -> None:
        """A box by its centre: a title, and smaller lines below it."""
        (x, y), (width, height) = at, size
        corner = (x - width / 2, y - height / 2)
        style = "round,pad=0,rounding_size=0.8"
        self.axes.add_patch(
            FancyBboxPatch(corner, width, height, boxstyle=style, facecolor=colour, edgecolor=INK, lw=1)
        )
        above = 0.75 * (lines.count("\n") + 1) if lines else 0
        self.text((x, y + above), title, weight="bold")
        if lines:
            self.text((x, y - 1.1), lines, size=8.5)

    def frame(self, corner: Point, size: Point, title: str, at_foot: bool = False) -> None:
        """A dashed frame with its title in a corner on the left."""
        style = "round,pad=0,rounding_size=1"
        self.axes.add_patch(
            FancyBboxPatch(corner, *size, boxstyle=style, facecolor="none", edgecolor=MUTED, ls="--", lw=1)
        )
        y = corner[1] + (1.6 if at_foot else size[1] - 1.6)
        self.text((corner[0] + 1.2, y), title, size=9, color=MUTED, ha="left", family="DejaVu Sans Mono")

    def text(self, at: Point, text: str, **options: object) -> None:
        """Centred text."""
        self.axes.text(*at, text, **({"ha": "center", "va": "center", "color": INK} | options))

    def arrow(
        self, start: Point, end: Point, label: str = "", shift: Point = (0, 1.2), style: str = "-"
    ) -> None:
        """An arrow, and what flows along it."""
        self.axes.add_patch(
            FancyArrowPatch(
                start,
                end,
                arrowstyle="-|>",
                mutation_scale=11,
                color=INK,
                lw=1.1,
                ls=style,
                shrinkA=0,
                shrinkB=0,
            )
        )
        middle = ((start[0] + end[0]) / 2 + shift[0], (start[1] + end[1]) / 2 + shift[1])
        if label:
            self.text(middle, label, size=9, style="italic")

    def save(self, name: str) -> None:
        """Writes the picture beside this file."""
        self.figure.savefig(FOLDER / name, metadata={"Date": None}, facecolor="white")
        plt.close(self.figure)


def step() -> None:
    """The seven questions along the data flow of one step."""
    d = Diagram(102, 54)
    size = (14, 6.4)
    d.frame(
        (1, 38), (100, 15), "loss, grads, oracle = sam.value_and_grad(losses)(params, batch, state=opt_state)"
    )
    d.box((10, 44), size, "given", "params, batch", GIVEN)
    d.box((34, 44), size, "1  start", "where, on which\nexamples?")
    d.box((60, 44), (16, 6.4), "first gradient", "loss  L,  gradient  g", ORACLE)
    d.arrow((17, 44), (27, 44), "w")
    d.arrow((41, 44), (52, 44), "point")

    d.frame(
        (1, 9), (100, 27), "updates, opt_state = tx.update(grads, opt_state, params, oracle=oracle)", True
    )
    d.box((10, 28), size, "2  direction", "what points\nuphill?")
    d.box((10, 16), size, "3  gate", "worth a second\ngradient?")
    d.box((34, 28), size, "4  ascent", "how far, in which\ngeometry?")
    d.box((34, 16), size, "7  reuse", "what does an unpaid\nstep remember?")
    d.box((58, 28), (16, 6.4), "second gradient", "at  w + e:  g'", ORACLE)
    d.box((58, 19.6), (16, 4.6), "5  selection", "on which examples?")
    d.box((82, 28), size, "6  combination", "how do two\nbecome one?")
    d.box((82, 16), size, "descent", "to the base optimizer", GIVEN)
    d.arrow((56, 40.8), (17.2, 30.2), "g", (1, 1.6))
    d.arrow((10, 24.8), (10, 19.2), "some gates", (4.6, 0), "--")
    d.arrow((17, 28), (27, 28), "d")
    d.arrow((17, 17.4), (27.2, 25.2), "yes", (1.6, -1.2))
    d.arrow((17, 16), (27, 16), "no")
    d.arrow((41, 28), (50, 28), "e")
    d.arrow((58, 21.9), (58, 24.8))
    d.arrow((66, 28), (75, 28), "g'")
    d.arrow((68, 43), (81, 31.2), "g", (1.4, 0.6))
    d.arrow((82, 24.8), (82, 19.2))
    d.arrow((41, 15), (75, 15), "g + what is remembered", (0, -1.3))
    d.box(
        (51, 4),
        (100, 5.4),
        "state",
        "one key, the decision for the next step, and what each piece remembers",
        GIVEN,
    )
    d.save("step.svg")


def house() -> None:
    """The folders and files of the package, above what they stand on, and the repository around it."""
    d = Diagram(102, 70)
    d.frame((1, 17), (100, 52), "optax_sam/")
    d.box((34.5, 62), (61, 6), "methods/", "a file for each paper: its equation, and one expression")
    d.box(
        (34.5, 53),
        (61, 5),
        "engine/assembly.py",
        "the order of the pieces in a step; the gate's lax.cond",
        ORACLE,
    )
    d.frame((3, 33), (63, 16), "pieces/")
    pieces = {
        "starts": "where first?",
        "directions": "what is uphill?",
        "gates": "worth it now?",
        "ascents": "how far? (masks)",
        "geometries": "in which norm?",
        "selections": "which examples?",
        "combinations": "two into one",
        "reuses": "what is kept?",
    }
    for number, (name, question) in enumerate(pieces.items()):
        row, column = divmod(number, 4)
        d.box((11.2 + 15.5 * column, 43.4 - 6.6 * row), (14.4, 5.4), name, question)
    d.box((84, 58), (28, 7), "wrappers/", "a method over slices,\ndevices, draws")
    d.box((84, 42), (28, 7), "sharpness/", "what it is: measured,\ndrawn, never trained with")
    d.box(
        (34.5, 27.5),
        (61, 6),
        "engine/",
        "how a step is called; gradients at a point, on all or some examples;\ncounting; the state",
        ORACLE,
    )
    d.box((84, 27.5), (28, 6), "per_example.py", "gradients and norms\nof single examples", ORACLE)
    d.box((51, 20.7), (94, 4.6), "arithmetic/", "trees, noise, means, devices, jaxprs", GIVEN)
    for x, top, foot in (
        (34.5, 59, 55.5),
        (34.5, 50.5, 49),
        (34.5, 33, 30.5),
        (84, 38.5, 30.5),
    ):
        d.arrow((x, top), (x, foot))
    d.axes.plot([70, 67.5, 67.5], [58, 58, 33], color=INK, lw=1.1)
    d.arrow((67.5, 33), (63, 30.5))
    rooms = {
        "experiments/": "training from the\ncommand line",
        "benchmarks/": "what steps cost",
        "tests/": "every promise, and\nNumPy references",
        "notebooks/": "six questions",
        "docs/": "this site",
    }
    for number, (name, content) in enumerate(rooms.items()):
        d.box((11 + 20 * number, 9), (19, 6.4), name, content, GIVEN)
    d.text((51, 3.4), "an arrow: stands on; only the package itself is installed", size=9, color=MUTED)
    d.save("house.svg")


if __name__ == "__main__":
    step()
    house()
