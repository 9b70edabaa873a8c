"""Scripts for clusters: what they run, seen by fakes of the cluster's programs."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.recipes import RECIPES
from tests.experiments.runs import ROOT

PAGE = (ROOT / "docs/experiments.md").read_text()
SCRIPTS = sorted((ROOT / "scripts").iterdir())
ARGS = ["recipe:vsam-digits", "--out", "/mnt/a b/it's $HOME"]
TRAIN = [".venv/bin/python", "-m", "experiments.train", *ARGS]


@pytest.fixture
def environment(tmp_path):
    """Fakes of the cluster's programs stand first on the path; each writes its arguments to a file."""
    for name in ("gcloud", "srun", "scontrol", "git", "python3.99"):
        fake = tmp_path / "bin" / name
        fake.parent.mkdir(exist_ok=True)
        fake.write_text(f'#!/bin/sh\nprintf "%s\\0" "$@" >> {tmp_path}/{name}\necho >> {tmp_path}/{name}\n')
        fake.chmod(0o755)
    return os.environ | {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}


def calls(file):
    """The arguments of a fake's calls."""
    return [line.split("\0")[:-1] for line in file.read_text().splitlines()]


def run(script, *args, env, cwd=ROOT):
    done = subprocess.run(
        [ROOT / "scripts" / script, *args], cwd=cwd, env=env, text=True, capture_output=True
    )
    return done.returncode, done.stdout, done.stderr


def words(line, env):
    """What a shell makes of a printed command."""
    show = f"printf '%s\\0' {line}"
    return subprocess.check_output(["bash", "-c", show], env=env, text=True).split("\0")[:-1]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_script_is_sound_and_says_what_it_does(script):
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if shellcheck:
        subprocess.run([shellcheck, script], check=True)
    subprocess.run(["bash", "-n", script], check=True)
    assert os.access(script, os.X_OK) and "--dry-run" in script.read_text().split("set -e")[0]


def test_dry_run_prints_the_commands_and_runs_none(environment, tmp_path):
    environment = environment | {"SLURM_SUBMIT_DIR": str(ROOT)}
    code, printed, _ = run("slurm.sbatch", "--dry-run", *ARGS, env=environment)
    assert code == 0
    assert words(printed, environment) == [
        "srun", "--kill-on-bad-exit=1", *TRAIN, "--distributed", "--resume"
    ]  # fmt: skip
    code, by_variable, _ = run("slurm.sbatch", *ARGS, env=environment | {"DRY_RUN": "1"})
    assert code == 0 and by_variable == printed
    code, printed, _ = run("tpu_slice.sh", "--dry-run", "pod", "us-central2-b", *ARGS, env=environment)
    archive, copied, started = (words(line, environment) for line in printed.splitlines())
    assert code == 0 and archive[0] == "git" and copied[:5] == ["gcloud", "compute", "tpus", "tpu-vm", "scp"]
    assert started[:6] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "pod"]
    assert not [file for file in tmp_path.iterdir() if file.is_file()]


def test_slice_gets_the_code_and_every_host_the_arguments_as_they_are(environment, tmp_path):
    code, _, error = run("tpu_slice.sh", "pod", "us-central2-b", *ARGS, env=environment)
    assert code == 0, error
    ((*_, revision),) = calls(tmp_path / "git")
    copied, started = calls(tmp_path / "gcloud")
    assert revision == "HEAD" and copied[3:4] + copied[5:6] == ["scp", "pod:optax_sam.tar.gz"]
    assert started[:5] == ["compute", "tpus", "tpu-vm", "ssh", "pod"]
    assert started[5:7] == ["--zone=us-central2-b", "--worker=all"]
    command = started[7].removeprefix("--command=")
    assert words(command.rpartition("&& ")[2], environment) == [
        "scripts/tpu_vm.sh", *ARGS, "--distributed"
    ]  # fmt: skip


def test_slice_without_a_zone_is_one_line(environment, tmp_path):
    code, _, error = run("tpu_slice.sh", "pod", env=environment)
    assert code == 2 and error.startswith("usage: ") and len(error.splitlines()) == 1
    assert not (tmp_path / "gcloud").exists()


def test_host_installs_once_and_trains(environment, tmp_path):
    (tmp_path / "copy/scripts").mkdir(parents=True)
    shutil.copy(ROOT / "scripts/tpu_vm.sh", tmp_path / "copy/scripts")
    script, env = tmp_path / "copy/scripts/tpu_vm.sh", environment | {"PYTHON": "python3.99"}
    made, installed, trained = (
        words(line, env) for line in run(script, "--dry-run", *ARGS, env=env)[1].splitlines()
    )
    assert made == ["python3.99", "-m", "venv", ".venv"]
    assert installed[:4] == [".venv/bin/python", "-m", "pip", "install"] and "jax[tpu]" in installed
    assert trained == [*TRAIN, "--resume"]
    (tmp_path / "copy/.venv/bin").mkdir(parents=True)
    (tmp_path / "bin/python3.99").rename(tmp_path / "copy/.venv/bin/python")
    assert run(script, *ARGS, env=environment)[0] == 0
    assert calls(tmp_path / "python3.99") == [[*TRAIN[1:], "--resume"]]


def test_job_trains_by_one_srun_and_fails_with_it(environment, tmp_path):
    environment = environment | {"SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_ID": "7"}
    assert run("slurm.sbatch", *ARGS, env=environment, cwd=tmp_path)[0] == 0
    assert calls(tmp_path / "srun") == [["--kill-on-bad-exit=1", *TRAIN, "--distributed", "--resume"]]
    (tmp_path / "bin/srun").write_text("#!/bin/sh\nexit 3\n")
    assert run("slurm.sbatch", *ARGS, env=environment)[0] == 3
    assert not (tmp_path / "scontrol").exists()


def test_job_goes_back_to_the_queue_before_its_time_is_up(environment, tmp_path):
    pid = tmp_path / "pid"
    (tmp_path / "bin/srun").write_text(
        f"#!/bin/sh\necho $$ > {pid}.new && mv {pid}.new {pid}\nexec sleep 60\n"
    )
    fake = tmp_path / "bin/scontrol"
    fake.write_text(fake.read_text() + f"kill $(cat {pid})\n")  # as SLURM ends the tasks
    environment = environment | {"SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_ID": "7"}
    job = subprocess.Popen([ROOT / "scripts/slurm.sbatch", *ARGS], env=environment)
    while not pid.exists():
        assert job.poll() is None
        time.sleep(0.01)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(timeout=30) != 0
    assert calls(tmp_path / "scontrol") == [["requeue", "7"]]


@pytest.mark.parametrize(
    "command", re.findall(r"^(?:sbatch \S+ )?(scripts/.*?)(?: +#|$)", PAGE, re.MULTILINE)
)
def test_commands_of_the_page_are_sound(command, environment):
    environment = environment | {"DRY_RUN": "1"}
    printed = subprocess.check_output(["bash", "-c", command], cwd=ROOT, env=environment, text=True)
    assert re.search(r"recipe:([\w-]+)", printed.splitlines()[-1])[1] in RECIPES
