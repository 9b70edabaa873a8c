"""The radius that is recommended where a run stands."""

import pytest

from experiments import radius, train
from experiments.running.standing import settings_of
from experiments.settings.defaults import resolved
from tests.experiments.runs import message_of


@pytest.mark.slow
def test_a_run_has_a_recommended_radius_and_a_picture(tmp_path, capsys):
    words = ["--method", "sgd", "--train-examples", "100", "--batch-size", "50", "--epochs", "2"]
    train.main([*words, "--out", str(tmp_path / "x")])
    capsys.readouterr()
    radius.main([str(tmp_path / "x"), "--batches", "2"])
    text = capsys.readouterr().out
    assert "rise / predicted" in text and "radius" in text
    assert (tmp_path / "x/radius.png").stat().st_size > 10_000
    found = settings_of(tmp_path / "x")
    assert found == resolved(found) and found.train_examples == 100 and found.method == "sgd"


def test_what_is_no_run_is_refused(tmp_path, capsys):
    line = message_of(lambda: radius.main([str(tmp_path)]), capsys)
    assert "holds no config.json: give the folder of a run" in line
    line = message_of(lambda: radius.main([str(tmp_path), "--batches", "0"]), capsys)
    assert "--batches 0 is out of range: give 1 or more" in line
