"""Sections, overrides and parts, against a tree of the test's own and the real parts."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import Field

from vlmodel.config import (
    ConfigError,
    ConfigSection,
    dump_config,
    find_part_config_class,
    list_part_kinds,
    load_config,
    parse_config,
    part_field,
)
from vlmodel.model_config import ModelConfig


class Inner(ConfigSection):
    rate: float = 0.5
    """Share of it."""
    name: str = "x"


class Tree(ConfigSection):
    inner: Inner = Field(default_factory=Inner)
    count: int = 3
    flag: bool = False
    items: list[str] = []
    optional: int | None = None
    fusion: part_field("vlmodel.fusion", "transformer") = Field({}, validate_default=True)  # type: ignore[valid-type]
    """How they meet."""


def test_defaults_file_overrides_in_that_order(tmp_path: Path) -> None:
    file = tmp_path / "tree.toml"
    file.write_text("count = 4\n[inner]\nrate = 0.25\nname = 'file'\n")
    tree = load_config(Tree, file, ["inner.name=override", "count=5"])
    assert (tree.flag, tree.inner.rate, tree.inner.name, tree.count) == (False, 0.25, "override", 5)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("bare word", "bare word"),
        ("'quoted'", "quoted"),
        ("a=b", "a=b"),
        ("/some/path.txt", "/some/path.txt"),
        ("", ""),
    ],
)
def test_override_of_a_string(text: str, value: str) -> None:
    assert load_config(Tree, None, [f"inner.name={text}"]).inner.name == value


def test_override_of_other_types() -> None:
    tree = load_config(Tree, None, ["flag=true", "items=['a', 'b']", "optional=7", "inner.rate=1e-3"])
    assert (tree.flag, tree.items, tree.optional, tree.inner.rate) == (True, ["a", "b"], 7, 1e-3)


@pytest.mark.parametrize("override", ["inner.name", "=3", ""])
def test_override_without_key_or_value_is_refused(override: str) -> None:
    with pytest.raises(ConfigError, match=r"not of the form a\.b\.c=value"):
        load_config(Tree, None, [override])


def test_override_of_a_kind_drops_the_settings_of_the_other_kind(tmp_path: Path) -> None:
    file = tmp_path / "tree.toml"
    file.write_text("[fusion]\nrounds = 4\nwidth = 8\n")
    for overrides in (["fusion.kind=concat", "fusion.dropout=0.5"], ["fusion.dropout=0.5", "fusion.kind=concat"]):
        fusion = load_config(Tree, file, overrides).fusion
        assert (fusion.kind, fusion.dropout, fusion.width) == ("concat", 0.5, 256)


def test_override_of_the_same_kind_keeps_the_settings(tmp_path: Path) -> None:
    file = tmp_path / "tree.toml"
    file.write_text("[fusion]\nkind = 'concat'\nwidth = 8\n")
    assert load_config(Tree, file, ["fusion.kind=concat"]).fusion.width == 8


def test_override_below_a_value_is_refused() -> None:
    with pytest.raises(ConfigError, match="'count' is a value, not a section"):
        load_config(Tree, None, ["count=3", "count.deeper=1"])


def test_unknown_key_names_the_valid_ones() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(Tree, {"inner": {"rat": 1.0}})
    assert str(caught.value) == "unknown key 'inner.rat'; did you mean 'inner.rate'? valid keys of inner: name, rate"


def test_unknown_key_at_the_top() -> None:
    with pytest.raises(
        ConfigError,
        match=r"unknown key 'innr'; did you mean 'inner'\? valid keys of the top level: count, flag, fusion",
    ):
        parse_config(Tree, {"innr": {}})


def test_unknown_key_that_a_section_has_names_the_section() -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'rate'; did you mean 'inner\.rate'\? valid keys of the top"):
        load_config(Tree, None, ["rate=1.0"])


def test_unknown_key_of_a_part_names_the_keys_of_the_kind_chosen() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(Tree, {"fusion": {"kind": "concat", "rounds": 3}})
    assert "rounds" in str(caught.value)
    assert "dropout, kind, width" in str(caught.value)


@pytest.mark.parametrize(
    ("tree", "key"),
    [
        ({"count": "3"}, "count"),
        ({"flag": 1}, "flag"),
        ({"inner": {"rate": "half"}}, "inner.rate"),
        ({"inner": 3}, "inner"),
    ],
)
def test_wrong_type_names_key_and_value(tree: dict[str, object], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(Tree, tree)
    value = tree.get(key, "half")
    assert str(caught.value).startswith(f"{key} = {value!r}: ")


def test_all_errors_are_reported_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(Tree, {"count": "3", "flagg": True})
    assert len(str(caught.value).splitlines()) == 2


def test_sections_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Tree().count = 4  # type: ignore[misc]


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        load_config(Tree, tmp_path / "none.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("count = ")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_config(Tree, broken)


def test_part_is_chosen_by_the_name_of_its_file() -> None:
    tree = parse_config(Tree, {"fusion": {"kind": "concat", "width": 8}})
    assert type(tree.fusion) is find_part_config_class("vlmodel.fusion", "concat")
    assert type(parse_config(Tree, {}).fusion) is find_part_config_class("vlmodel.fusion", "transformer")


def test_unknown_kind_names_the_kinds() -> None:
    with pytest.raises(
        ConfigError,
        match=r"^fusion: kind 'bilinear' is not a part of vlmodel.fusion; choose one of concat, .*transformer",
    ):
        parse_config(Tree, {"fusion": {"kind": "bilinear"}})


@pytest.mark.parametrize("package", ["vision", "language", "topology", "fusion", "tasks"])
def test_kind_is_the_name_of_the_file(package: str) -> None:
    for kind in list_part_kinds(f"vlmodel.{package}"):
        assert find_part_config_class(f"vlmodel.{package}", kind).model_fields["kind"].default == kind


def test_dump_parses_to_the_same() -> None:
    tree = parse_config(Tree, {"fusion": {"kind": "concat", "width": 8}, "optional": 4, "inner": {"name": "é"}})
    assert parse_config(Tree, dump_config(tree)) == tree
    model = parse_config(ModelConfig, {"vision": {"mean": [0.5, 0.5, 0.5]}})
    assert parse_config(ModelConfig, dump_config(model)) == model


def test_another_kind_starts_from_its_own_defaults(tmp_path: Path) -> None:
    """Settings of the file were meant for the kind that it had; the same kind keeps them."""
    from vlmodel.model_config import ModelConfig

    file = tmp_path / "model.toml"
    file.write_text("[fusion]\nrounds = 5\n")
    assert load_config(ModelConfig, file, ["fusion.kind=transformer"]).fusion.rounds == 5
    other = load_config(ModelConfig, file, ["fusion.width=32", "fusion.kind=concat"]).fusion
    assert (other.kind, other.width) == ("concat", 32)


class Named(ConfigSection):
    tasks: dict[str, part_field("vlmodel.fusion", "concat")] = {}  # type: ignore[valid-type]
    """Ways to meet."""


def test_parts_by_their_names_take_overrides(tmp_path: Path) -> None:
    file = tmp_path / "tree.toml"
    file.write_text("[tasks.first]\nwidth = 8\n[tasks.second]\nwidth = 16\n")
    tree = load_config(
        Named, file, ["tasks.second.rounds=3", "tasks.second.kind=transformer", "tasks.first.kind=concat"]
    )
    # The same kind keeps the settings of the file, another one drops them.
    assert (tree.tasks["first"].kind, tree.tasks["first"].width) == ("concat", 8)
    assert (tree.tasks["second"].kind, tree.tasks["second"].width, tree.tasks["second"].rounds) == (
        "transformer",
        256,
        3,
    )
    assert parse_config(Named, dump_config(tree)) == tree


def test_parts_by_their_names_have_their_own_keys() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(Named, {"tasks": {"first": {"rounds": 3}, "second": {"kind": "transformer", "round": 3}}})
    first, second = str(caught.value).splitlines()
    valid = "valid keys of tasks.first: dropout, kind, width"
    other_kinds = "This is tasks.first.kind=concat; interactive, transformer have that key"
    assert first == f"unknown key 'tasks.first.rounds'; {valid}. {other_kinds}"
    assert second.startswith(
        "unknown key 'tasks.second.round'; did you mean 'tasks.second.rounds'? valid keys of tasks.second: dropout, "
    )
    with pytest.raises(ConfigError, match=r"^tasks\.first\.width = 'wide': "):
        parse_config(Named, {"tasks": {"first": {"width": "wide"}}})
    with pytest.raises(
        ConfigError, match=r"^tasks\.first: kind 'none' is not a part of vlmodel\.fusion; choose one of"
    ):
        load_config(Named, None, ["tasks.first.kind=none"])


def test_tasks_of_a_model_by_overrides_in_any_order(tmp_path: Path) -> None:
    """A part within a part: the outer kind is set first, whatever was named first."""
    overrides = [
        "task.heads.match.pairs=questions",
        "task.heads.match.kind=matching",
        "task.heads.vqa.kind=vqa",
        "task.heads.vqa.hidden=8",
        "task.weights.vqa=2.0",
        "task.kind=multitask",
    ]
    for order in (overrides, overrides[::-1]):
        decoder = load_config(ModelConfig, None, order).task
        assert (decoder.heads["match"].pairs, decoder.heads["vqa"].hidden) == ("questions", 8)
    file = tmp_path / "model.toml"
    file.write_text("[task]\nkind = 'multitask'\n[task.heads.a]\nhidden = 8\n[task.heads.b]\nkind = 'matching'\n")
    decoder = load_config(ModelConfig, file, ["task.heads.a.kind=vqa", "task.heads.b.kind=contrastive"]).task
    assert (decoder.heads["a"].hidden, decoder.heads["b"].kind) == (8, "contrastive")
    with pytest.raises(
        ConfigError, match=r"unknown key 'task\.heads\.b\.hidden'; valid keys of .*: dropout, gather, kind"
    ):
        load_config(ModelConfig, file, ["task.heads.b.kind=contrastive", "task.heads.b.hidden=8"])


def test_a_kind_that_does_not_exist_can_be_overridden(tmp_path: Path) -> None:
    file = tmp_path / "tree.toml"
    file.write_text("[fusion]\nkind = 'gone'\nrounds = 4\n")
    assert load_config(Tree, file, ["fusion.kind=concat"]).fusion.kind == "concat"
