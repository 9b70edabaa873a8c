"""Disks that are full or read-only: one line, nothing lost, and the run can go on."""

import os
import resource
import shutil
import subprocess
import time

import pytest

from tests.experiments.runs import (
    TINY,
    contents,
    message_of,
    num_lines,
    only_line,
    outcome,
    run,
    start,
    wait_until,
)

FLAGS = [*TINY, "--method", "vsam", "--epochs", "15"]
MEGABYTE = 2**20


@pytest.fixture(scope="module")
def whole(tmp_path_factory, compiled_once):
    """Folder of an uninterrupted run."""
    out = tmp_path_factory.mktemp("whole") / "x"
    run(out, *FLAGS)
    return out


@pytest.fixture
def mount():
    """Mounts as the command of that name does, until the end of the test."""
    targets = []

    def mount(*args):
        done = subprocess.run(["mount", *args], text=True, capture_output=True)
        if done.returncode:
            pytest.skip(f"mounting is not permitted here: {done.stderr.splitlines()[0]}")
        targets.append(args[-1])

    yield mount
    for target in reversed(targets):
        subprocess.run(["umount", "--lazy", target], stderr=subprocess.DEVNULL)  # a test may have been first


@pytest.fixture
def make_switch(request):
    """For a folder or file, a function that makes it read-only (True) or writable again (False)."""
    if os.geteuid():
        return chmod_switch
    mount = request.getfixturevalue("mount")  # permission bits do not bind root

    def bind_switch(path):
        mount("--bind", path, path)
        return lambda read_only: remount(path, read_only)

    return bind_switch


def remount(path, read_only):
    options = f"remount,bind,{'ro' if read_only else 'rw'}"
    for _ in range(2000):  # a file that is just being written makes it busy
        if not subprocess.run(["mount", "-o", options, path], stderr=subprocess.DEVNULL).returncode:
            return
        time.sleep(0.001)
    raise TimeoutError(path)


def chmod_switch(path):
    def switch(read_only):
        for each in (path, *path.rglob("*")):
            if each.is_dir():
                each.chmod(0o555 if read_only else 0o755)

    return switch


def assert_resumes(out, whole, capsys):
    """What was written is good, and going on ends with the numbers of the uninterrupted run."""
    capsys.readouterr()
    run(out, *FLAGS, "--resume")
    assert "damaged" not in capsys.readouterr().err
    assert outcome(out) == outcome(whole)


# Full


@pytest.mark.slow
def test_limit_on_the_size_of_files_while_a_checkpoint_is_written(whole, tmp_path, capsys):
    if not hasattr(resource, "prlimit"):
        pytest.skip("this system cannot limit a running process")
    out = tmp_path / "x"
    process = start(out, *FLAGS)
    assert wait_until(lambda: num_lines(out) >= 3, process)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    line, code = only_line(process)
    assert code == 2 and line.startswith(f"error: --out {out}: the checkpoint of epoch")
    assert "(File too large)" in line and "make room" in line and "--resume" in line
    assert_resumes(out, whole, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("left", [0, 16_000, 100_000])
def test_full_disk_while_a_checkpoint_is_written(left, whole, tmp_path, mount, capsys):
    mount("-t", "tmpfs", "-o", f"size={4 * MEGABYTE}", "none", tmp_path)
    out, ballast = tmp_path / "x", tmp_path / "ballast"
    process = start(out, *FLAGS)
    assert wait_until(lambda: num_lines(out) >= 3, process)
    while process.poll() is None:  # again and again, since an old checkpoint that goes makes room
        disk = os.statvfs(tmp_path)
        with ballast.open("ab", buffering=0) as file:
            file.write(bytes(max(0, disk.f_bavail * disk.f_bsize - left)))
    line, code = only_line(process)
    assert code == 2 and line.startswith(f"error: --out {out}")
    assert "(No space left on device)" in line and "make room" in line and "--resume" in line
    assert left == 0 or "the checkpoint of epoch" in line
    line = message_of(lambda: run(out, *FLAGS, "--resume"), capsys)
    assert "(No space left on device)" in line
    ballast.unlink()
    assert_resumes(out, whole, capsys)


# Read-only


def test_new_run_inside_a_read_only_folder_is_refused(tmp_path, make_switch, capsys):
    switch = make_switch(tmp_path)
    switch(True)
    line = message_of(lambda: run(tmp_path / "x", *FLAGS), capsys)
    switch(False)
    assert f"--out {tmp_path / 'x'} cannot be written, since {tmp_path} is read-only" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_run_folder_becomes_read_only_between_two_checkpoints(whole, tmp_path, make_switch, capsys):
    out = tmp_path / "x"
    out.mkdir()
    switch = make_switch(out)
    process = start(out, *FLAGS)
    assert wait_until(lambda: num_lines(out) >= 3, process)
    switch(True)
    line, code = only_line(process)
    before = contents(out)
    resumed = message_of(lambda: run(out, *FLAGS, "--resume"), capsys)
    assert contents(out) == before
    switch(False)
    assert code == 2 and line.startswith(f"error: --out {out}") and "--resume" in line
    assert "make it writable" in line and "make it writable" in resumed
    assert_resumes(out, whole, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["metrics.jsonl", "result.json"])
def test_read_only_file_of_a_run(name, whole, tmp_path, make_switch, capsys):
    out = tmp_path / "x"
    shutil.copytree(whole, out)
    if make_switch is chmod_switch:  # where the folder permits it, the file is replaced
        (out / name).chmod(0o444)
        assert_resumes(out, whole, capsys)
        return
    before = contents(out)
    switch = make_switch(out / name)
    switch(True)
    line = message_of(lambda: run(out, *FLAGS, "--resume"), capsys)
    assert f"--out {out} cannot be written" in line and "--resume" in line
    kept = {path for path in before if path == out / name or "checkpoints" in path.parts}
    assert all(contents(out)[path] == before[path] for path in kept)
    subprocess.run(["umount", out / name], check=True)  # even a writable mount cannot be replaced
    assert_resumes(out, whole, capsys)
