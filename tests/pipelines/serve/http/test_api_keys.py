"""The variable that names the API keys: what is refused in it, and the documented command that makes a hash."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from pathlib import Path

import pytest

from pipelines.serve.errors import ServeError
from pipelines.serve.http.api_keys import KEY_HASHES_VARIABLE, read_key_hashes


def test_key_in_place_of_its_hash_is_refused_without_quoting_it() -> None:
    good = hashlib.sha256(b"key").hexdigest()
    assert read_key_hashes({KEY_HASHES_VARIABLE: f" {good.upper()}, {good} "}) == (good, good)
    assert read_key_hashes({}) == ()
    with pytest.raises(ServeError, match="entry 2") as caught:
        read_key_hashes({KEY_HASHES_VARIABLE: f"{good},my-secret-key"})
    assert "my-secret-key" not in str(caught.value)


@pytest.mark.parametrize("value", ["", " ", ",", "GOOD,", ",GOOD", "GOOD,,GOOD"])
def test_an_empty_list_of_keys_or_an_empty_entry_is_refused(value: str) -> None:
    good = hashlib.sha256(b"key").hexdigest()
    with pytest.raises(ServeError, match="empty"):
        read_key_hashes({KEY_HASHES_VARIABLE: value.replace("GOOD", good)})


@pytest.mark.parametrize("nothing", ["", " ", "\n", "\r\n", "\t", " \n"])
def test_the_hash_of_no_key_is_refused(nothing: str) -> None:
    good, bad = (hashlib.sha256(text.encode()).hexdigest() for text in ("key", nothing))
    with pytest.raises(ServeError, match=r"entry 2 .* is the hash of no key"):
        read_key_hashes({KEY_HASHES_VARIABLE: f"{good},{bad}"})


def test_the_documented_commands_for_a_hash_fail_without_a_key() -> None:
    readme = (Path(__file__).parents[4] / "infra" / "README.md").read_text()
    commands = [line for line in readme.splitlines() if "sha256sum" in line and line.startswith(":")]
    assert len(commands) == 2
    assert readme.count("sha256sum") == 2, "a command for a hash that does not begin with the check"
    for command in commands:
        # What stands in place of kubectl and export shows what would be kept.
        shown = re.sub(r"&& .*?(?==\")", "&& echo hashes", command)
        results = {
            key: subprocess.run(
                ["bash", "-c", shown],
                env={"PATH": os.environ["PATH"], "API_KEY": key},
                capture_output=True,
                text=True,
                check=False,
            )
            for key in ("", "key")
        }
        assert results["key"].stdout == f"hashes={hashlib.sha256(b'key').hexdigest()}\n"
        assert (results[""].stdout, results[""].returncode != 0) == ("", True)
        assert "API_KEY" in results[""].stderr
