"""The radius by the network's width: what the curves are, and what each layer has of the gradient."""

import numpy as np
import pytest

from experiments.data import load
from experiments.evidence import width
from experiments.evidence.__main__ import Book
from experiments.running.programs import compile_programs
from experiments.running.standing import standing_at


def test_a_curve_takes_the_best_rate_at_each_radius():
    scores = {(0.1, 0.2): [0.5, 0.7], (0.2, 0.2): [0.8, 0.6], (0.1, 0.4): [0.9, 0.9], (0.2, 0.4): [0.1, 0.1]}
    rows = [
        {"phase": "width", "width": 64, "method": "sam", "learning_rate": rate, "rho": rho, "score": score}
        for (rate, rho), both in scores.items()
        for score in both
    ]
    assert width.curves(rows, "sam") == {64: {0.2: [80, 60], 0.4: [90, 90]}}
    assert width.best_radii(rows, "sam") == {64: 0.4} and width.curves(rows, "fan_scaled_sam") == {}


def test_each_layers_part_of_the_gradient_is_seen_at_both_looks(tmp_path, monkeypatch):
    monkeypatch.setattr(width, "LOOKS", (0, 1))
    book = Book(tmp_path / width.FILE)
    settings = width.WidthSettings(seeds=1)
    width.look(settings, 32, book)
    width.look(settings, 32, book)  # what is there stays
    (row,) = [row for row in book.rows if row["phase"] == "layers"]
    np.testing.assert_allclose(np.sum(row["shares"], axis=1), 1, rtol=1e-6)
    assert row["shares"][0] != row["shares"][1]
    run = width.run_of({"width": 32, "method": "sam", "learning_rate": 0.2, "rho": 0.4, "seed": 0})
    programs = compile_programs(run, data := load(run))
    inputs = programs.inputs(run, data)
    here = standing_at(programs.trainer, inputs, programs.init(inputs))
    assert width.layers(here) == pytest.approx(row["shares"][0])
    percents = [f"{100 * share:.0f}" for share in row["shares"][0]]
    assert width.shares_table(book.rows)[1][:2] == ("32", ", ".join(percents))
