"""infra/retrain.sh: the id of a window, what it submits, that a second call is content; and the schedules' files."""

from __future__ import annotations

import hashlib
import inspect
import os
import re
import shutil
import subprocess
import types
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

from pipelines.retrain.cycle import run_retraining_window
from pipelines.retrain.window import window_id
from pipelines.workflows import retrain as workflow

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "infra" / "retrain.sh"
SCHEDULE = ROOT / "infra" / "schedule"

# Stands for Ray's job server: takes each id once, and writes down what it is asked. A job's log is $LOG.
RAY = """#!/usr/bin/env bash
printf '%s\\n' "$*" >>"$CALLS"
[[ ${REFUSE:-} ]] && { echo "$REFUSE" >&2; exit 1; }
[[ $4 == logs ]] && { echo "${LOG:-}"; exit 0; }
mkdir "$CALLS.$7" 2>/dev/null && exit 0
echo "Job with submission_id $7 already exists. Please use a different submission_id." >&2
exit 1
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The script in a tree of its own, whose Python is the stand-in."""
    (tmp_path / "infra").mkdir()
    shutil.copy(SCRIPT, tmp_path / "infra" / "retrain.sh")
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(RAY, encoding="utf-8")
    python.chmod(0o755)
    return tmp_path


def retrain(root: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    there = {"CALLS": str(root / "calls"), "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:9"}
    return subprocess.run(
        [str(root / "infra" / "retrain.sh"), *arguments],
        env=inherited | there | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def checksum(*arguments: str) -> str:
    return hashlib.sha256("".join(f"{argument}\0" for argument in arguments).encode()).hexdigest()[:8]


def test_it_submits_under_the_id_of_the_window_and_the_arguments(checkout: Path) -> None:
    done = retrain(checkout, "--window", "w%Y", "--", "--config", "a.toml", "name=x y", "retrain.window={window}")
    year = datetime.now(UTC).strftime("w%Y")
    name = f"retrain-{year}-{checksum('--config', 'a.toml', 'name=x y', 'retrain.window={window}')}"
    assert (done.returncode, done.stdout) == (0, f"submitted: {name}\n"), done.stderr
    assert (checkout / "calls").read_text(encoding="utf-8").splitlines() == [
        f"-m ray.scripts.scripts job submit --no-wait --submission-id {name} --working-dir {checkout} -- "
        f"python -m jobs.retrain --config a.toml name=x y retrain.window={year}"
    ]


@pytest.mark.parametrize(
    "log", ["", "retrain  begins cycle 7", "retrain  nothing to begin: window x has had its cycle"]
)
def test_a_window_that_was_submitted_is_left_alone(checkout: Path, log: str) -> None:
    name = f"retrain-x-{checksum('--config', 'a.toml')}"
    for outcome in ("submitted", "submitted before"):
        done = retrain(checkout, "--window", "x", "--", "--config", "a.toml", LOG=log)
        assert (done.returncode, done.stdout) == (0, f"{outcome}: {name}\n"), done.stderr


def test_a_window_in_which_nothing_was_new_is_not_used_up(checkout: Path) -> None:
    name = f"retrain-x-{checksum('--config', 'a.toml')}"
    nothing = "retrain  nothing to begin: 0 new tars, and a cycle begins with 1"
    for submitted in (name, f"{name}-2", f"{name}-3"):
        done = retrain(checkout, "--window", "x", "--", "--config", "a.toml", LOG=nothing)
        assert (done.returncode, done.stdout) == (0, f"submitted: {submitted}\n"), done.stderr
    done = retrain(checkout, "--window", "x", "--", "--config", "a.toml", LOG="retrain  begins cycle 7")
    assert (done.returncode, done.stdout) == (0, f"submitted before: {name}\n"), done.stderr


def test_what_it_looks_for_is_what_the_job_says() -> None:
    ledger = types.SimpleNamespace(unfinished_cycle=lambda: None, committed_cycles=list)
    outcome = run_retraining_window(ledger, "x", find=list, steps={}, min_tars=2)
    assert re.fullmatch(r"[0-9]+ new tars, .*", outcome.reason)
    assert "nothing to begin: {outcome.reason}" in inspect.getsource(workflow)


def test_two_models_of_one_window_are_two_submissions(checkout: Path) -> None:
    ids = {retrain(checkout, "--window", "x", "--", "--config", file).stdout for file in ("a.toml", "b.toml")}
    assert len(ids) == 2


def test_a_refusal_is_a_failure_that_can_be_read(checkout: Path) -> None:
    done = retrain(checkout, "--window", "x", "--", "--config", "a.toml", REFUSE="401 Unauthorized")
    assert done.returncode == 1
    name = f"retrain-x-{checksum('--config', 'a.toml')}"
    assert done.stderr.splitlines() == ["401 Unauthorized", f"retrain.sh: {name} was not submitted"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "what is to be retrained?"),
        (["--"], "what is to be retrained?"),
        (["--windows", "x", "--", "a"], "unknown option --windows"),
        (["--window"], "option --window needs a value"),
        (["--window", "%Y/%m", "--", "a"], "may have letters, digits and . _ - only"),
        (["--window", "../x", "--", "a"], "may have letters, digits and . _ - only"),
    ],
)
def test_wrong_usage_is_explained(checkout: Path, arguments: list[str], message: str) -> None:
    done = retrain(checkout, *arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert not (checkout / "calls").exists()


def test_without_a_cluster_it_says_so(checkout: Path) -> None:
    cluster = checkout / "infra" / "cluster.sh"
    cluster.write_text("#!/bin/sh\necho 'cluster.sh: not running' >&2\nexit 1\n", encoding="utf-8")
    cluster.chmod(0o755)
    done = retrain(checkout, "--window", "x", "--", "a", RAY_API_SERVER_ADDRESS="")
    assert done.returncode == 1
    assert "no cluster; start one, or set RAY_API_SERVER_ADDRESS" in done.stderr


def test_message_for_a_known_submission_id_is_rays() -> None:
    import ray

    source = Path(ray.__file__).parent.joinpath("dashboard/modules/job/job_manager.py").read_text(encoding="utf-8")
    assert "Job with submission_id {submission_id} already exists" in source


def calls_of_schedules() -> dict[str, str]:
    service = (SCHEDULE / "raylm-retrain.service").read_text(encoding="utf-8")
    crontab = (SCHEDULE / "crontab").read_text(encoding="utf-8").splitlines()
    (line,) = (line for line in crontab if not line.startswith("#"))
    return {
        "systemd": re.search(r"^ExecStart=%h/raylm/(.*)$", service, re.MULTILINE)[1],
        "cron": line.partition("&& ")[2],
    }


@pytest.mark.parametrize("scheduler", ["systemd", "cron"])
def test_schedules_call_the_script_as_it_is_used(checkout: Path, scheduler: str) -> None:
    call = calls_of_schedules()[scheduler].replace("%h", "/home/vl").replace("$HOME", "/home/vl")
    script, *arguments = call.split()
    assert script == "infra/retrain.sh"
    done = retrain(checkout, "--dry-run", *arguments)
    today = window_id(datetime.now(UTC), 1440)
    name = f"retrain-{today}-{checksum(*arguments[1:])}"
    assert done.stdout == f"{name}: python -m jobs.retrain {' '.join(arguments[1:])}\n", done.stderr
    assert (ROOT / arguments[arguments.index("--config") + 1]).is_file()
    assert {"data.tars=/home/vl/raylm/build/data/easy-vqa", "storage=/home/vl/raylm/build/runs"} <= {*arguments}


def test_a_percent_would_end_the_command_in_a_crontab() -> None:
    assert "%" not in calls_of_schedules()["cron"]


def test_all_schedules_have_the_same_hour() -> None:
    timer = (SCHEDULE / "raylm-retrain.timer").read_text(encoding="utf-8")
    assert "OnCalendar=*-*-* 02:00:00 UTC" in timer
    assert "Persistent=yes" in timer
    cronjob = yaml.safe_load((ROOT / "infra/k8s/cronjob-retrain.yaml").read_text(encoding="utf-8"))
    assert (cronjob["spec"]["schedule"], cronjob["spec"]["timeZone"]) == ("0 2 * * *", "Etc/UTC")


def test_systemd_takes_the_units(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("there is no systemd here")
    home = tmp_path / "raylm" / "infra"
    home.mkdir(parents=True)
    shutil.copy(SCRIPT, home / "retrain.sh")
    for unit in ("raylm-retrain.service", "raylm-retrain.timer"):
        text = (SCHEDULE / unit).read_text(encoding="utf-8")
        (tmp_path / unit).write_text(text.replace("%h", str(tmp_path)), encoding="utf-8")
    done = subprocess.run(
        [analyze, "verify", "--man=no", "raylm-retrain.service", "raylm-retrain.timer"],
        cwd=tmp_path,
        env=os.environ | {"XDG_RUNTIME_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    about_ours = [line for line in done.stderr.splitlines() if "raylm" in line]
    assert not about_ours, done.stderr
