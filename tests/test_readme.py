"""The commands of the documents are executed, or checked as far as they can be without doing their work."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from jobs.job import find_config_file
from pipelines.workflows.config import JobConfig
from vlmodel.config import load_config

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "infra/README.md", "docs/GUIDE.md"]
SHELLS = {"bash", "sh", "shell", "console"}

# Programs whose arguments are checked below.
SCRIPTS = {"infra/cluster.sh", "infra/retrain.sh", "infra/services.sh"}
OURS = {"make", "python", "python3", ".venv/bin/python", "ray", ".venv/bin/ray", "eval", ".ci/run"} | SCRIPTS
# Programs that are not ours: the names are known, what they do is theirs to check.
OTHERS = {
    ":",
    "cd",
    "cp",
    "curl",
    "docker",
    "export",
    "git",
    "kubectl",
    "loginctl",
    "mlflow",
    "open",
    "podman",
    "source",
    "systemctl",
    ".",
}


def blocks(text: str) -> Iterator[str]:
    """Fenced shell blocks, and indented blocks that begin with a command (others are pictures)."""
    fence = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
    yield from (block for language, block in fence.findall(text) if language in SHELLS)
    for block in re.findall(r"(?:^ {4}.*\n)+", fence.sub("", text), re.MULTILINE):
        if block.split()[0] in OURS | OTHERS:
            yield block


def commands(document: str) -> list[str]:
    """The commands that a document shows, one a line, continuations joined, prompts and comments taken off."""
    path = ROOT / document
    if not path.is_file():
        return []
    lines = [line for b in blocks(path.read_text(encoding="utf-8")) for line in b.replace("\\\n", " ").splitlines()]
    found = [line.strip().removeprefix("$ ") for line in lines]
    return [command for command in found if command and not command.startswith("#")]


COMMANDS = [(document, command) for document in DOCUMENTS for command in commands(document)]


@cache
def make_targets() -> frozenset[str]:
    return frozenset(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


@cache
def jobs() -> frozenset[str]:
    texts = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "jobs").glob("*.py")}
    return frozenset(job for job, text in texts.items() if "__main__" in text)


def parts(command: str) -> Iterator[list[str]]:
    """The words of each simple command in a line, without assignments before it and without comments."""
    lexer = shlex.shlex(command, posix=True, punctuation_chars=";&|")
    lexer.whitespace_split = True
    words = list(lexer)
    part: list[str] = []
    for word in [*words, ";"]:
        if word in (";", "&&", "||", "|", "&"):
            while part and re.match(r"[A-Z_]+=", part[0]):
                part.pop(0)
            if part:
                yield part
            part = []
        else:
            part.append(word)


def check(words: list[str]) -> None:
    """Fail if the command cannot be right."""
    program, *arguments = words
    if program == "make":
        for argument in arguments:
            assert "=" in argument or argument in make_targets(), f"the Makefile has no target {argument!r}"
    elif program in ("python", "python3", ".venv/bin/python") and arguments[:1] == ["-m"]:
        package, _, job = arguments[1].partition(".")
        assert package == "jobs", f"unknown module {arguments[1]}"
        check_job(job, arguments[2:])
    elif program in ("ray", ".venv/bin/ray"):
        if arguments[:2] == ["job", "submit"] and "--" in arguments:
            check(arguments[arguments.index("--") + 1 :])
        else:
            assert arguments[0] in ("start", "stop", "status", "job"), f"unknown ray command {arguments[0]!r}"
    elif program in SCRIPTS:
        check_script(program, arguments)
    elif program == "eval":
        inner = re.fullmatch(r"\$\((.*)\)", arguments[0])
        assert inner, f"cannot check {arguments[0]!r}"
        check(shlex.split(inner[1]))
    elif program == ".ci/run":
        assert (ROOT / program).is_file()
    else:
        assert program in OTHERS, f"unknown command {program!r}; teach this test to check it"
        for file in [a for a in arguments if re.match(r"(infra|jobs|pipelines|vlmodel|tests)/", a)]:
            assert (ROOT / file).exists(), f"there is no {file}"


def check_script(program: str, arguments: list[str]) -> None:
    usage = (ROOT / program).read_text(encoding="utf-8").split("TEXT")[1]
    if not arguments[0].startswith("-"):
        assert re.search(rf"^  {arguments[0]}\b", usage, re.MULTILINE), f"{program} knows no {arguments[0]!r}"
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    for option in [argument for argument in options if argument.startswith("--")]:
        assert f"{option} " in usage, f"{program} knows no {option!r}"
    if program == "infra/retrain.sh":
        check_job("retrain", arguments[arguments.index("--") + 1 :])


def check_job(job: str, arguments: list[str]) -> None:
    if job == "NAME":  # the general form of the command, with placeholders
        return
    assert job in jobs(), f"there is no job {job!r}; there are {', '.join(sorted(jobs()))}"
    file = None
    if "--config" in arguments:
        position = arguments.index("--config")
        file = find_config_file(arguments[position + 1])
        assert (ROOT / str(file)).is_file(), f"there is no {file}"
        arguments = arguments[:position] + arguments[position + 2 :]
    overrides = [argument for argument in arguments if argument not in ("--help", "--print")]
    load_config(JobConfig, ROOT / file if file else None, overrides)


@pytest.mark.parametrize(("document", "command"), COMMANDS)
def test_command_is_right(document: str, command: str) -> None:
    for words in parts(command):
        check(words)


@pytest.mark.parametrize("job", sorted(jobs()))
def test_help_of_every_job(job: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    # In this process, as python -m would: a process of its own spends seconds importing torch for each job.
    monkeypatch.setattr(sys, "argv", [f"jobs/{job}.py", "--help"])
    monkeypatch.delitem(sys.modules, f"jobs.{job}", raising=False)
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module(f"jobs.{job}", run_name="__main__", alter_sys=True)
    assert not stopped.value.code
    shown = capsys.readouterr().out
    assert ("raylm JOB" if job == "cli" else f"python -m jobs.{job}") in shown
    assert "--config" in shown


@pytest.mark.parametrize("document", DOCUMENTS)
def test_document_has_commands(document: str) -> None:
    if not (ROOT / document).is_file():
        pytest.skip(f"{document} is not there yet")
    assert commands(document), f"{document} shows no command"


@pytest.mark.parametrize(
    "document", [*DOCUMENTS, "CHANGELOG.md", *sorted(f"docs/{p.name}" for p in ROOT.glob("docs/*.md"))]
)
def test_links_lead_somewhere(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        if "://" not in target:
            assert (ROOT / document).parent.joinpath(target).exists(), f"{document} links to {target}"


@pytest.mark.parametrize(
    "wrong",
    [
        "make demos",
        "python -m jobs.trian --config jobs/configs/demo.toml",
        "python -m jobs.train --config jobs/configs/nothing.toml",
        "python -m jobs.train train.epochz=3",
        "ray job submit --working-dir . -- python -m jobs.train train.epochs=many",
        "infra/cluster.sh begin",
        "infra/cluster.sh start --prot 3",
        "infra/services.sh start --prot 3",
        "kubectl apply -f infra/k8s/nothing.yaml",
        "rm -rf build",
    ],
)
def test_wrong_commands_are_found(wrong: str) -> None:
    words = next(parts(wrong))
    with pytest.raises((AssertionError, ValueError)):
        check(words)
