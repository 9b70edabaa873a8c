"""What damage to the files of a run does to it."""

import dataclasses
import random
import shutil

import pytest

from experiments import data, train
from experiments.running.checkpoints import Checkpoint, Checkpoints
from experiments.running.records import alone_in, sha256
from experiments.settings import Settings, SettingsError
from experiments.settings.defaults import resolved
from tests.experiments.runs import TINY, contents, message_of, outcome, run
from tests.registry import over

EPOCHS = 3
FLAGS = [*TINY, "--method", "vsam", "--epochs", str(EPOCHS)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, compiled_once):
    """Folder and last state of a finished run."""
    out = tmp_path_factory.mktemp("finished") / "x"
    run(out, *FLAGS)
    settings = resolved(Settings(method="vsam", train_examples=60, batch_size=20, out=out))
    loaded = data.load(settings)
    programs = train.compile_programs(dataclasses.replace(settings, epochs=EPOCHS), loaded)
    return out, Checkpoints(out).restore(programs.init(programs.inputs(settings, loaded))).state


def copy_of(out, folder, without=()):
    """A fresh copy of a run's folder, some checkpoints left out."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(out, folder)
    for epoch in without:
        shutil.rmtree(folder / f"checkpoints/{epoch}")
    return folder


def cut(content, dice):
    return content[: dice.randrange(len(content) // 2 + 1)]  # the end of the arrays' file is not always read


def flip(content, dice):
    place = dice.randrange(len(content))
    return content[:place] + bytes([content[place] ^ 1 << dice.randrange(8)]) + content[place + 1 :]


DAMAGES = {"empty": lambda *_: b"", "cut": cut, "one bit": flip, "missing": lambda *_: None}


def do_damage(file, content):
    file.unlink() if content is None else file.write_bytes(content)


# Checkpoints


@pytest.mark.parametrize("kind", over(DAMAGES, ["one bit"]))
def test_damage_to_any_file_of_a_checkpoint_costs_at_most_that_checkpoint(kind, finished, tmp_path, capsys):
    out, state = finished
    kept = range(EPOCHS - 1, EPOCHS + 1)
    good = {}
    for epoch in kept:
        copy = copy_of(out, tmp_path / "copy", without=set(kept) - {epoch})
        good[epoch] = Checkpoints(copy).restore(state)
        assert good[epoch].epoch == epoch == len(good[epoch].lines)
    assert sha256(good[EPOCHS].state) == sha256(state)
    dice, newest, fallen_back = random.Random(kind), out / f"checkpoints/{EPOCHS}", {}
    for file, content in contents(newest).items():
        damaged = DAMAGES[kind](content, dice)
        copy = copy_of(out, tmp_path / "copy")
        do_damage(copy / file.relative_to(out), damaged)
        before = contents(copy)
        read = Checkpoints(copy).restore(state)
        # Files that the numbers do not depend on may do no harm; wrong numbers are never read.
        assert sha256(read.state) == sha256(good[read.epoch].state), file
        assert read.lines == good[read.epoch].lines
        printed = capsys.readouterr().err.splitlines()
        if read.epoch == EPOCHS:
            assert not printed and contents(copy) == before
        else:
            assert len(printed) == 1 and f"checkpoint of epoch {EPOCHS} is damaged" in printed[0]
            fallen_back[file] = damaged
    names = {str(file.relative_to(newest)) for file in fallen_back}
    biggest = max(contents(newest), key=lambda file: file.stat().st_size)  # the arrays
    expected = {str(biggest.relative_to(newest))}
    assert names >= expected | ({"record/metadata", "state/_METADATA"} if kind != "one bit" else set())
    for file, damaged in fallen_back.items():
        copy = copy_of(out, tmp_path / "copy", without=[EPOCHS - 1])
        do_damage(copy / file.relative_to(out), damaged)
        before = contents(copy)
        with pytest.raises(SettingsError, match=f"no checkpoint can be read .epoch {EPOCHS}: ") as error:
            Checkpoints(copy).restore(state)
        assert "\n" not in str(error.value) and contents(copy) == before


def test_run_goes_on_from_the_checkpoint_before_a_damaged_one(finished, tmp_path, capsys):
    out, _ = finished
    copy = copy_of(out, tmp_path / "copy")
    for file in contents(copy / f"checkpoints/{EPOCHS}"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    (copy / f"checkpoints/{EPOCHS + 1}.orbax-checkpoint-tmp-7").mkdir()
    run(copy, *FLAGS, "--resume")
    printed = capsys.readouterr().err
    assert f"checkpoint of epoch {EPOCHS} is damaged" in printed and len(printed.splitlines()) == 1
    assert outcome(copy) == outcome(out)


def test_without_a_good_checkpoint_one_line_and_nothing_deleted(finished, tmp_path, capsys):
    copy = copy_of(finished[0], tmp_path / "copy")
    for file in contents(copy / "checkpoints"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    before = contents(copy)
    line = message_of(lambda: run(copy, *FLAGS, "--resume"), capsys)
    assert "no checkpoint can be read" in line and "epoch 2" in line and "epoch 3" in line
    assert contents(copy) == before


@pytest.mark.parametrize("change", ["state", "lines"])
def test_consistent_files_with_another_content_are_noticed(change, finished, tmp_path):
    state, other = finished[1], finished[1]
    lines, more = [{"epoch": 1, "test_loss": 1.0}], [{"epoch": 1, "test_loss": 1.5}]
    if change == "state":
        other, more = state._replace(loss_sum=state.loss_sum + 1), lines
    for name, checkpoint in (("a", Checkpoint(1, state, lines)), ("b", Checkpoint(1, other, more))):
        checkpoints = Checkpoints(tmp_path / name)
        checkpoints.save(checkpoint)
        checkpoints.finish()
    if change == "state":
        shutil.rmtree(tmp_path / "a/checkpoints/1/state")
        shutil.copytree(tmp_path / "b/checkpoints/1/state", tmp_path / "a/checkpoints/1/state")
    else:
        record = tmp_path / "a/checkpoints/1/record/metadata"
        record.write_text(record.read_text().replace("1.0", "1.5"))
    with pytest.raises(SettingsError, match="digest"):
        Checkpoints(tmp_path / "a").restore(state)


# The metrics and the settings


def torn(text):
    return text[:-30]


def longer(text):
    return text + text.splitlines()[-1].replace('"epoch": 3', '"epoch": 4') + '\n{"epoch": 5, "st'


def twice(text):
    return text + text


METRICS_DAMAGES = {"torn": torn, "longer": longer, "twice": twice, "empty": lambda _: "", "missing": None}


@pytest.mark.parametrize("done", [EPOCHS, EPOCHS - 1])
@pytest.mark.parametrize("kind", METRICS_DAMAGES)
def test_metrics_hold_every_epoch_once_whatever_happened_to_them(kind, done, finished, tmp_path):
    out, _ = finished
    copy = copy_of(out, tmp_path / "copy", without=[EPOCHS] if done < EPOCHS else [])
    (copy / "result.json").unlink()
    file, damage = copy / "metrics.jsonl", METRICS_DAMAGES[kind]
    do_damage(file, damage(file.read_text()).encode() if damage else None)
    run(copy, *FLAGS, "--resume")
    assert outcome(copy) == outcome(out)


def test_checkpoints_without_the_settings_of_their_run_are_refused(finished, tmp_path, capsys):
    copy = copy_of(finished[0], tmp_path / "copy")
    (copy / "config.json").unlink()
    for args in (FLAGS, [*FLAGS, "--resume"]):
        assert "without the config.json" in message_of(lambda: run(copy, *args), capsys)  # noqa: B023
    assert not (copy / "config.json").exists()


def test_second_process_in_a_folder_is_refused(finished, tmp_path, capsys):
    copy = copy_of(finished[0], tmp_path / "copy")
    before = contents(copy)
    with alone_in(copy):
        line = message_of(lambda: run(copy, *FLAGS, "--resume"), capsys)
    assert "in use by another process" in line and contents(copy) == before
    run(copy, *FLAGS, "--resume")
