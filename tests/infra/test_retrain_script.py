"""infra/retrain.sh: one submission a window, under an id that the job's own windows agree with."""

from __future__ import annotations

import os
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

from jobs.config import JobConfig
from pipelines.retrain.window import Window
from vlmodel.config import load

ROOT = Path(__file__).resolve().parents[2]

# Knows the jobs that were submitted, as Ray's own command does.
PYTHON = """#!/bin/bash
shift 2
case "$1 $2" in
"job status") grep -q -- "--submission-id $3 " "$LOG" 2>/dev/null ;;
*) echo "$RAY_ADDRESS: $*" >>"$LOG" ;;
esac
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A copy of the script beside stand-ins for the cluster, Python and the clock."""
    for folder in ("infra", ".venv/bin", "bin"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copy(ROOT / "infra/retrain.sh", tmp_path / "infra")
    stand_ins = {
        "infra/cluster.sh": '#!/bin/bash\n[[ $1 == env && $3 != gone ]] && echo "export RAY_ADDRESS=there:1"\n',
        ".venv/bin/python": PYTHON,
        "bin/date": f'#!/bin/bash\n[[ $* == +%s ]] && echo "$NOW" || exec {shutil.which("date")} "$@"\n',
    }
    for name, text in stand_ins.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "mine.toml").touch()
    return tmp_path


def start(place: Path, now: datetime, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = f"{place / 'bin'}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "NOW": f"{now.timestamp():.0f}", "LOG": str(place / "log")}
    return subprocess.run(
        [place / "infra/retrain.sh", *arguments], env=environment, capture_output=True, text=True, cwd="/"
    )


def submitted(place: Path) -> list[str]:
    return (place / "log").read_text().splitlines() if (place / "log").exists() else []


@pytest.mark.parametrize("minutes", [15, 90, 1440, 10080])
def test_the_window_is_the_one_that_python_counts(place: Path, minutes: int) -> None:
    now = datetime(2026, 3, 29, 23, 59, 58, tzinfo=UTC)
    done = start(place, now, "--config", "mine.toml", "--id", "vqa", "--period", str(minutes), "--", "name=vqa")
    assert done.returncode == 0, done.stderr
    window = Window.at(now, minutes).id
    (line,) = submitted(place)
    before, _, command = line.partition(" -- ")
    assert before == f"there:1: job submit --no-wait --submission-id vqa-{window} --working-dir ."
    assert command.split()[1:5] == ["-m", "jobs.retrain", "--config", "mine.toml"]
    config = load(JobConfig, None, command.split()[5:])
    assert (config.retrain.window, config.retrain.period_minutes, config.name) == (window, minutes, "vqa")


def test_a_window_is_submitted_once(place: Path) -> None:
    for hour in (0, 7, 23):
        done = start(place, datetime(2026, 1, 31, hour, tzinfo=UTC), "--config", "mine.toml")
        assert done.returncode == 0, done.stderr
    assert "was submitted before" in done.stdout
    assert len(submitted(place)) == 1
    start(place, datetime(2026, 2, 1, tzinfo=UTC), "--config", "mine.toml")
    assert len(submitted(place)) == 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "there is no configuration file ''"),
        (["--config", "no.toml"], "there is no configuration file 'no.toml'"),
        (["--config", "mine.toml", "--period", "1.5"], "--period is a whole number of minutes, not '1.5'"),
        (["--config", "mine.toml", "--state", "gone"], "no cluster runs here; start one"),
        (["--confg", "mine.toml"], "unknown option --confg"),
        (["--config"], "option --config needs a value"),
    ],
)
def test_wrong_usage_is_named(place: Path, arguments: list[str], says: str) -> None:
    done = start(place, datetime(2026, 1, 31, tzinfo=UTC), *arguments)
    assert done.returncode == 1
    assert says in done.stderr
    assert not submitted(place)


def test_the_unit_starts_the_script_as_it_wants_to_be() -> None:
    unit = (ROOT / "infra/schedule/retrain.service").read_text()
    (command,) = [line.partition("=")[2] for line in unit.splitlines() if line.startswith("ExecStart=")]
    program, *arguments = command.split()
    assert program.endswith("infra/retrain.sh")
    assert arguments[::2] == ["--config", "--period"]
    assert "Persistent=true" in (ROOT / "infra/schedule/retrain.timer").read_text()
