"""Wrong usage gets help: one message that names the thing and the remedy, no traceback, a non-zero exit."""

from __future__ import annotations

import errno
import importlib
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from jobs import cli
from jobs import promote as promote_job
from jobs.job import main
from pipelines.errors import DataError
from pipelines.train import run_folder
from pipelines.workflows import (
    ablate,
    evaluate,
    export,
    import_data,
    index,
    knowledge,
    pipeline,
    predict,
    prepare,
    promote,
    retrain,
    serve,
    train,
    tune,
)
from pipelines.workflows.config import JobConfig
from tests.jobs.conftest import ROOT, coloured_pictures
from vlmodel.config import dump_config, load_config, parse_config

MODULES = {
    m.__name__.rpartition(".")[2]: m
    for m in (
        ablate,
        evaluate,
        export,
        import_data,
        index,
        knowledge,
        pipeline,
        predict,
        prepare,
        promote,
        retrain,
        serve,
        train,
        tune,
    )
}


def test_help_fits_the_terminal_and_has_all_of_a_settings_text(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main("train", ["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    # The end of a text of three lines in the source.
    assert "learning rate schedule still covers all `epochs`" in " ".join(" ".join(lines).split())


@pytest.mark.parametrize("name", sorted(MODULES))
def test_help_lists_every_setting(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(name, ["--help"]) == 0
    shown = capsys.readouterr().out
    assert "train.optimizer.head_lr = 0.001" in shown
    assert "model.fusion.kind = transformer" in shown


def test_help_shows_the_settings_of_the_kinds_on_the_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main("import_data", ["source.kind=table", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "source.kind = table" in shown
    assert "source.file = required" in shown
    assert "source.image_size" not in shown
    assert "``" not in shown
    assert shown.index("source.file") < shown.index("train.epochs"), "what the job is about comes first"
    assert main("import_data", ["--help", "--config", "demo", "model.fusion.kind=concat"]) == 0
    shown = capsys.readouterr().out
    assert "source.image_size" in shown
    assert "model.fusion.rounds" not in shown


def test_help_imports_nothing_slow() -> None:
    program = (
        "import sys, jobs.train\n"
        "assert jobs.train.main(['--help']) == 0\n"
        "slow = {'torch', 'ray', 'mlflow', 'transformers', 'numpy', 'pyarrow'} & set(sys.modules)\n"
        "assert not slow, slow"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_help_that_is_cut_off_is_quiet() -> None:
    command = ["bash", "-c", f"set -o pipefail; '{sys.executable}' -m jobs.train --help | head -n 1"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: ")
    assert done.stderr == ""


@pytest.mark.parametrize("reason", ["the old one is offensive", "3", 'a "quoted" = reason'])
def test_a_forced_promotion_takes_its_reason_as_text(reason: str) -> None:
    forced: list[str] = []
    flags = {"--force": "registry.force="}
    assert main("promote", ["--force", reason], flags=flags, run=lambda w: forced.append(w.config.registry.force)) == 0
    assert forced == [reason]


def test_a_forced_promotion_needs_a_reason(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        promote_job.main(["--force"])
    assert stopped.value.code == 2
    assert "--force: expected one argument" in capsys.readouterr().err


def test_a_retraining_forces_no_promotion(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = [f"storage={tmp_path}", f"data.tars={tmp_path}", "registry.force=for a demonstration"]
    assert main("retrain", settings, run=retrain.run) != 0
    assert "registry.force is for one promotion by a person" in capsys.readouterr().err


def test_the_command_raylm_runs_the_jobs(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--config", "demo", "--print"]) == 0
    assert "name = 'demo'" in capsys.readouterr().out
    assert cli.main(["import-data", "--help"]) == 0
    assert "python -m jobs.import_data" in capsys.readouterr().out
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("raylm ")
    assert cli.main([]) == 0
    listed = capsys.readouterr().out
    assert max(map(len, listed.splitlines())) <= 80, listed
    assert all(f"  {name} " in listed for name in MODULES)
    assert cli.main(["trian"]) == 2
    assert "there is no job 'trian'; did you mean train?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "says"),
    [
        (
            "train.epoch=3",
            "unknown key 'train.epoch'; did you mean 'train.epochs'? valid keys of train: accumulation",
        ),
        ("source.file=my.csv", "This is source.kind=scenes; conversations, table have that key"),
        ("model.fusion.kind=transfomer", "did you mean 'transformer'? choose one of"),
        ("train.epochs=many", "train.epochs = 'many': Input should be a valid integer"),
        ("model.vision.name=resnet19", "resnet18"),
        ("model.fusion.kind=magic", "'magic' is not a part of vlmodel.fusion; choose one of concat"),
        ("nonsense", "is not of the form a.b.c=value"),
        ("name=../up", "name"),
        (
            "predict.generation={top_q=1}",
            "predict.generation: 'top_q' is no setting of generation; they are",
        ),
        ("predict.generation={num_beams=2}", "predict.generation: num_beams=2 cannot find top_k=5 texts; use as many"),
        (
            "train.feature_cache=float32",
            "train.feature_cache='float32' keeps what frozen encoders give, and with model.vision.frozen=false and "
            "model.language.frozen=false training changes that; set one of them to true",
        ),
    ],
)
def test_wrong_settings_are_refused(override: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main("train", [override]) == 2
    shown = capsys.readouterr().err
    assert says in shown
    assert "python -m jobs.train --help" in shown


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (
            ["model.vision.kind=vit", "model.vision.image_size=64", "processor.image_size=224"],
            "processor.image_size=224, and model.vision has a",
        ),
        (["processor.image_size=8"], "processor.image_size=8 is smaller than one grid cell of model.vision"),
        (["processor.max_tokens=500"], "processor.max_tokens=500 is more than the 128 tokens that model.language"),
        (
            ["model.task.kind=caption", "processor.max_target_tokens=500"],
            "processor.max_target_tokens=500 is more than the 128 tokens that model.task can write",
        ),
        (["train.step.compile=true", "processor.length_groups=3"], "compile each cut anew, and after a few give"),
        (
            ["model.vision.output=pooled", "model.vision.grid=4"],
            "model.vision.grid=4 is of no use with output='pooled'",
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused(overrides: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main("train", overrides) == 2
    assert says in capsys.readouterr().err


def test_longer_texts_than_any_head_writes_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    heads = "model.task.heads={ask={kind='vqa'}, tell={kind='caption', head={positions=100}}}"
    longer = ["model.task.kind=multitask", heads, "predict.generation={max_new_tokens=101}"]
    assert main("train", longer) == 2
    says = "predict.generation: max_new_tokens=101 is more than the 100 that the decoder knows; lower the one or raise"
    assert says in capsys.readouterr().err


def test_features_are_not_kept_of_images_that_change(capsys: pytest.CaptureFixture[str]) -> None:
    both = ["model.vision.frozen=true", "train.feature_cache=float16", "train.augment.flip=0.5"]
    assert main("train", both) == 2
    says = "train.augment (flip=0.5) or the augment of model.inputs changes these in each epoch"
    assert says in capsys.readouterr().err


def test_features_of_texts_are_kept_while_images_change() -> None:
    tree = {
        "model": {"vision": {"frozen": True}, "language": {"frozen": True}},
        "train": {"feature_cache": "float16", "augment": {"flip": 0.5}},
    }
    assert parse_config(JobConfig, tree).streams_with_cacheable_features() == ("language",)
    tree["train"]["augment"]["min_area"], tree["train"]["augment"]["flip"] = 1.0, 0.0  # type: ignore[index]
    assert parse_config(JobConfig, tree).streams_with_cacheable_features() == ("vision", "language")
    # A topology that encodes the text takes its embeddings alone.
    tree["model"]["topology"] = {"kind": "single"}
    assert parse_config(JobConfig, tree).streams_with_cacheable_features() == ("vision",)


def test_help_names_the_command_that_was_given(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for program, command in (("/env/bin/raylm", "raylm train"), ("/code/jobs/train.py", "python -m jobs.train")):
        monkeypatch.setattr(sys, "argv", [program])
        assert main("train", ["nonsense=1"]) == 2
        assert f"(settings: {command} --help)" in capsys.readouterr().err


def test_a_missing_config_names_those_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main("train", ["--config", "demoo"]) == 2
    says = "configuration file 'demoo' does not exist; did you mean demo? packaged are "
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (["kind=table", "file={}/none.csv"], "none.csv' does not exist; set source.file to the table"),
        (["kind=table", "file={}/book.xlsx"], "is a spreadsheet; save its sheet as CSV (UTF-8) and name that"),
        (["kind=table", "file={}/wrong.csv"], "no column 'image' (source.image); its columns are 'picture', 'text'"),
        (["kind=table", "file={}/no-text.csv"], "no-text.csv has neither a caption nor a q"),
        (["kind=folder", "folder={}/none"], "none' does not exist; set source.folder to the folder of the pictures"),
        (["kind=folder", "folder={}/empty"], "empty' is empty; set source.folder to the folder of the pictures"),
        (["kind=folder", "folder={}/notes"], "(it holds 1 .txt files); set source.folder to where the data is"),
    ],
)
def test_a_source_that_is_none_is_told_in_one_line(
    source: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("a")
    (tmp_path / "wrong.csv").write_text("picture,text\na.png,b\n")
    (tmp_path / "no-text.csv").write_text("image\na.png\n")
    (tmp_path / "book.xlsx").write_bytes(b"PK\x03\x04")
    overrides = [f"source.{setting.format(tmp_path)}" for setting in source]
    assert main("import_data", [*overrides, f"data.tars={tmp_path / 'tars'}"]) == 1
    shown = capsys.readouterr().err
    assert says in shown
    assert shown.startswith("import_data: ")
    assert len(shown.splitlines()) == 1
    assert not (tmp_path / "tars").exists()


def test_a_table_without_answers_is_told_at_import(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    coloured_pictures(folder, train=4, val=2, test=2)
    table = folder / "questions.csv"
    table.write_text(table.read_text().replace("answer", "reply", 1))
    arguments = ["source.kind=table", f"source.file={table}", f"data.tars={tmp_path / 'tars'}"]
    assert main("import_data", arguments) == 0
    shown = capsys.readouterr().out
    assert "import train: 8 of these questions have no answer; source.answer names their column" in shown
    assert "no question has an answer: such data can be answered (predict), and nothing learns from them" in shown


OLD = """
import sys
real, sys.version_info = sys.version_info, (3, 10, 13, "final", 0)
from jobs import train
sys.exit(train.main(["--help"]))
"""


def test_an_old_python_is_told_in_one_line() -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", OLD], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert re.fullmatch(r"raylm needs Python 3\.11 or newer, and \S+ is 3\.10\.13; run it with .*\n", done.stderr)


def test_a_package_that_is_not_installed_is_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def run(_: object) -> None:
        importlib.import_module("raylm_of_which_only_the_model_was_installed.cluster")

    assert main("train", [], run=run) == 1
    says = "train: the package 'raylm_of_which_only_the_model_was_installed' is not installed; jobs need more than"
    shown = capsys.readouterr().err
    assert shown.startswith(says)
    assert shown.endswith('pip install "raylm[cluster]"\n')


def test_a_missing_file_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main("train", ["--config", "no/such.toml"]) == 2
    assert "'no/such.toml' does not exist" in capsys.readouterr().err


def test_the_printed_settings_are_valid_overrides(capsys: pytest.CaptureFixture[str]) -> None:
    assert main("train", ["--config", "jobs/configs/demo.toml", "--print", "train.epochs=7"]) == 0
    assert "train.epochs = 7" in capsys.readouterr().out


def test_a_flag_is_short_for_a_setting_of_one_job(capsys: pytest.CaptureFixture[str]) -> None:
    flags = {"--report": "data.index.report=true"}
    assert main("index", ["--print", "--report"], flags=flags) == 0
    assert "data.index.report = True" in capsys.readouterr().out
    assert main("index", ["--print", "--report", "data.index.report=false"], flags=flags) == 0
    assert "data.index.report = False" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main("train", ["--print", "--report"])


def test_a_full_disk_is_no_traceback(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def run(config: JobConfig) -> None:
        raise RuntimeError("a worker failed") from OSError(errno.ENOSPC, "No space left on device", "/data/x")

    monkeypatch.setattr(run, "__module__", train.__name__)
    assert main("train", [], run=run) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("train: [Errno 28] No space left on device: '/data/x'; make room and start the job again")


def test_data_that_was_not_indexed_names_the_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data").mkdir()
    assert main("train", [f"data.tars={tmp_path / 'data'}", f"storage={tmp_path}"]) == 1
    assert "jobs.index" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["index", "predict"])
def test_a_folder_without_tars_is_told_before_a_cluster_is_sought(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [f"data.tars={tmp_path / 'none'}", f"storage={tmp_path}", "cluster.address=127.0.0.1:1"]
    assert main(name, arguments) == 1
    assert re.fullmatch(rf"{name}: no \.tar in '\S+none'; import data first .*\n", capsys.readouterr().err)


def test_a_batch_that_does_not_divide_names_those_that_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train.batch=10", "train.workers=4", f"storage={tmp_path}", f"data.tars={tmp_path}"]
    assert main("train", arguments) == 2
    assert "use 8 or 12" in capsys.readouterr().err


def test_a_busy_port_is_found_before_the_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main("pipeline", [f"serve.port={port}", f"storage={tmp_path}"]) == 1
    assert f"port {port} on 127.0.0.1 is in use" in capsys.readouterr().err


def test_a_run_that_another_job_trains_is_refused_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = [f"serve.port={port}", f"storage={tmp_path}", "name=mine", f"data.tars={tmp_path / 'tars'}"]
    with run_folder.lock_run_folder(f"{tmp_path}/mine"):
        assert main("pipeline", arguments) == 1
    shown = capsys.readouterr().err
    assert re.search(rf"mine is under way: process {os.getpid()} on \S+ since .* writes there; wait until", shown)
    assert not (tmp_path / "tars").exists()


def test_a_name_may_look_like_a_number() -> None:
    config = load_config(JobConfig, None, ["evaluate.model=3", "name=2024", 'storage="runs"'])
    assert (config.evaluate.model, config.name, config.storage) == ("3", "2024", "runs")


def test_a_missing_model_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    assert main("evaluate", [f"evaluate.model={folder}", f"storage={tmp_path}"]) == 1
    assert "holds no model" in capsys.readouterr().err


def test_an_error_of_a_job_keeps_its_lines_and_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    def run(config: object) -> None:
        raise DataError("the key 'a\x1b[2Jb' is odd\nleft out: 1")

    assert main("index", [], run=run) == 1
    assert capsys.readouterr().err == "index: the key 'a\\x1b[2Jb' is odd\nleft out: 1\n"


@pytest.mark.parametrize(
    ("overrides", "run", "model"),
    [
        ([], "vqa", "data"),
        (["data.tars=build/data/scenes"], "scenes", "scenes"),
        (["data.tars=s3://bucket/my photos/"], "my-photos", "my-photos"),
        (["data.tars=x/mine", "tracking.model_name=ours"], "mine", "ours"),
        (["data.tars=x/mine", "name=again"], "again", "mine"),
    ],
)
def test_run_and_model_are_named_after_their_data(overrides: list[str], run: str, model: str) -> None:
    config = load_config(JobConfig, None, overrides)
    assert (config.name, config.tracking.model_name) == (run, model)
    assert parse_config(JobConfig, dump_config(config)) == config
