"""What a run leaves behind for TensorBoard and the profiler."""

import json
import shutil
import struct

import pytest
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

from tests.experiments.runs import TINY, message_of, run


def read_events(folder):
    """Every event of a folder, the checksums compared."""
    (file,) = (folder / "events").iterdir()
    content, events = file.read_bytes(), []
    while content:
        (size,) = struct.unpack("<Q", content[:8])
        body = content[12 : 12 + size]
        for part, check in ((content[:8], content[8:12]), (body, content[12 + size : 16 + size])):
            assert struct.unpack("<I", check)[0] == masked_crc32c(part)
        events.append(Event.FromString(body))
        content = content[16 + size :]
    assert events[0].file_version == "brain.Event:2"
    return events[1:]


def test_events_hold_the_numbers_of_the_metrics_once_after_a_resumption_too(tmp_path):
    args = [*TINY, "--method", "sgd", "--epochs", "3"]
    run(tmp_path, *args)
    for _ in range(2):
        lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
        found = [
            (e.step, e.summary.value[0].tag, e.summary.value[0].simple_value) for e in read_events(tmp_path)
        ]
        expected = [
            (line["step"], name, value) for line in lines for name, value in line.items() if name != "step"
        ]
        assert [each[:2] for each in found] == [each[:2] for each in expected]
        assert all(abs(a[2] - b[2]) <= 1e-6 * abs(b[2]) for a, b in zip(found, expected, strict=True))
        (tmp_path / "result.json").unlink()
        run(tmp_path, *args, "--resume")


@pytest.mark.slow
def test_profile_traces_the_asked_steps(tmp_path, capsys):
    args = [*TINY, "--method", "sgd", "--epochs", "2", "--profile"]
    run(tmp_path / "x", *args, "2", "5")
    assert list((tmp_path / "x/profile").rglob("*.xplane.pb"))
    capsys.readouterr()
    assert "--profile 2 7" in message_of(lambda: run(tmp_path / "y", *args, "2", "7"), capsys)
    assert not (tmp_path / "y").exists()


@pytest.mark.slow
def test_a_run_that_goes_on_within_the_traced_steps_traces_the_rest(tmp_path):
    args = [*TINY, "--method", "sgd", "--epochs", "2", "--profile", "2", "5"]
    run(tmp_path, *args)
    shutil.rmtree(tmp_path / "checkpoints/2")
    shutil.rmtree(tmp_path / "profile")
    run(tmp_path, *args, "--resume")
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
