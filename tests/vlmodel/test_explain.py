"""The settings of a section as plain data."""

from __future__ import annotations

from vlmodel.config import ConfigSection, list_part_kinds, part_field
from vlmodel.explain import list_part_packages, list_settings, list_settings_of_part
from vlmodel.model_config import ModelConfig


class Named(ConfigSection):
    parts: dict[str, part_field("vlmodel.fusion", "concat")] = {}  # type: ignore[valid-type]
    """Ways to
    meet."""
    count: int = 3
    """How many."""
    needed: str
    """What nobody else can know."""


class Inner(ConfigSection):
    size: int = 2
    """How large."""


class Outer(ConfigSection):
    inner: Inner | None = None
    """What may be left out."""
    other: Inner = Inner()


def test_settings_have_key_default_text_and_package() -> None:
    assert list(list_settings(Named)) == [
        {"key": "parts.NAME", "default": "concat", "doc": "Ways to meet.", "package": "vlmodel.fusion"},
        {"key": "count", "default": "3", "doc": "How many.", "package": ""},
        {"key": "needed", "default": "required", "doc": "What nobody else can know.", "package": ""},
    ]
    assert [setting["key"] for setting in list_settings_of_part("vlmodel.fusion", "concat")] == ["width", "dropout"]


def test_a_section_that_may_be_left_out_is_a_setting_itself() -> None:
    size = {"default": "2", "doc": "How large.", "package": ""}
    assert list(list_settings(Outer)) == [
        {"key": "inner", "default": "null", "doc": "What may be left out.", "package": ""},
        {"key": "inner.size", **size},
        {"key": "other.size", **size},
    ]


def test_every_setting_of_the_model_is_documented() -> None:
    settings = [*list_settings(ModelConfig)]
    packages = list_part_packages(ModelConfig)
    assert {setting["package"] for setting in settings} <= set(packages)
    settings += [
        s for package in packages for kind in list_part_kinds(package) for s in list_settings_of_part(package, kind)
    ]
    assert "rounds" in {setting["key"] for setting in settings}
    assert [setting["key"] for setting in settings if not setting["doc"]] == []
