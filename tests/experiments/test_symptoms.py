"""Trainings in which SAM does not help, and those of several widths: what is trained, what is said of it."""

import json

import pytest

from experiments.evidence import symptoms, width
from experiments.settings.defaults import resolved
from tests.experiments.runs import message_of


def test_every_case_is_a_run():
    for case, method, numbers in symptoms.trainings():
        settings = symptoms.run_of(case, method, numbers, 3)
        assert settings == resolved(settings) and settings.seed == 3 and settings.data == "mnist1d"


def test_the_table_has_means_deviations_and_median_rises():
    rows = [
        {"case": "as it should be", "method": "sgd", "accuracy": [0.7, 0.8], "train_loss": [0.1, 0.1]},
        {"case": "radius too large", "method": "sam", "accuracy": [0.1, 0.1], "train_loss": [None, 2.0]},
    ]
    rises = ([None, None], [0.2, 0.4])
    rows = [row | {"relative_rise": rise} for row, rise in zip(rows, rises, strict=True)]
    lines = symptoms.table(rows).splitlines()
    assert lines[2] == "| as it should be | SGD | 75.0 ± 7.1 | 0.100 ± 0.000 |  |"
    assert lines[3] == "| radius too large | `sam(1.6)` | 10.0 ± 0.0 | not finite | 0.3 |"
    assert "n = 2;" in lines[-1]


def test_the_page_holds_what_the_results_say():
    """Nobody edits the table by hand."""
    text = (symptoms.ROOT / "docs/faq.md").read_text()
    made = text.partition(symptoms.BEGIN)[2].partition(symptoms.END)[0]
    rows = [json.loads(line) for line in (symptoms.RESULTS / symptoms.FILE).read_text().splitlines()]
    assert made.strip() == symptoms.table(rows).strip()


def rows_of(method, scores):
    """Lines by hand: {(width, rate, radius): scores}."""
    return [
        {"phase": "width", "method": method, "width": w, "learning_rate": rate, "rho": rho, "score": score}
        for (w, rate, rho), values in scores.items()
        for score in values
    ]


def test_the_best_radius_of_a_width_is_that_of_its_best_rate():
    scores = {(64, 0.1, 0.2): [0.5, 0.7], (64, 0.4, 0.2): [0.8, 0.8], (64, 0.1, 0.4): [0.7, 0.7]}
    rows = rows_of("sam", scores | {(256, 0.1, 0.2): [0.5, 0.5], (256, 0.1, 0.4): [0.6, 0.6]})
    assert width.best_radii(rows, "sam") == {64: 0.2, 256: 0.4}
    assert width.curves(rows, "sam")[64] == {0.2: [80, 80], 0.4: [70, 70]}
    assert width.best_radii(rows, "fan_scaled_sam") == {}


@pytest.mark.slow
def test_widths_are_trained_drawn_and_gone_on_with(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(width, "EPOCHS", 1)
    monkeypatch.setattr(width, "RATES", (0.1,))
    words = [
        "--widths",
        "32",
        "--seeds",
        "2",
        "--results",
        str(tmp_path),
        "--picture",
        str(tmp_path / "p.png"),
    ]
    width.main(words)
    text = (tmp_path / width.FILE).read_text()
    assert text.count('"phase": "width"') == 2 * 6 * 2 and (tmp_path / "p.png").stat().st_size > 10_000
    width.main(words)
    assert (tmp_path / width.FILE).read_text() == text
    line = message_of(lambda: width.main(["--widths", "7", "--results", str(tmp_path)]), capsys)
    assert "--widths 7 is not there: give some of 256, 32, 64" in line
