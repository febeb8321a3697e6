from __future__ import annotations

import io
import json

import pytest

from pipelines.registry.gate import report
from pipelines.registry.gate.check import GateCheck, GateDecision, MetricDifference

BETTER = GateCheck("better on the hold-out", True, "0.9 against 0.8", "above 0", "bootstrap", compares=True)
WORSE = GateCheck("no slice worse", False, "target=<b>|x", "none worse", "slices", compares=True)
WHOLE = GateCheck("stored files", True, "all as registered", "sha256", "why")
TAMPERED = GateCheck("stored files", False, "changed: MLmodel", "sha256", "why")
LEFT_OUT = GateCheck("smoke test", None, "", "", "registry.smoke_test is false")
DIFFERENCES = (
    MetricDifference("hold-out", 1000, 0.9, 0.8, 0.05, 0.15),
    MetricDifference("target=fine", 300, 0.9, 0.9, -0.1, 0.1, tolerance=0.02),
    MetricDifference("target=<b>|x", 100, 0.5, 0.8, -0.4, -0.2, tolerance=0.02, worse=True),
)


def decision(*checks: GateCheck, differences: tuple[MetricDifference, ...] = ()) -> GateDecision:
    return GateDecision("vqa", "7", "3", checks, differences)


@pytest.mark.parametrize(
    ("checks", "promote", "is_usable"),
    [
        ((WHOLE, BETTER), True, True),
        ((WHOLE, LEFT_OUT, BETTER), True, True),
        ((WHOLE, BETTER, WORSE), False, True),
        ((TAMPERED, BETTER), False, False),
        ((), False, False),
    ],
)
def test_every_check_must_pass_and_one_must_be_made(
    checks: tuple[GateCheck, ...], promote: bool, is_usable: bool
) -> None:
    found = decision(*checks)
    assert (found.promote, found.is_usable) == (promote, is_usable)


def test_the_reason_names_what_failed_or_what_was_better() -> None:
    assert decision(WHOLE, LEFT_OUT, BETTER).reason == "all 2 checks passed; better on the hold-out: 0.9 against 0.8"
    assert decision(TAMPERED, WORSE).reason == (
        "stored files: changed: MLmodel, required sha256; no slice worse: target=<b>|x, required none worse"
    )


def test_the_tables_hold_every_check_and_nothing_of_the_data_unescaped() -> None:
    found = decision(WHOLE, LEFT_OUT, BETTER, WORSE, differences=DIFFERENCES)
    text = report.decision_markdown(found)
    assert text.startswith("# vqa version 7 against version 3: is not promoted\n")
    assert "| stored files | ✓ passed | all as registered | sha256 | why |" in text
    assert "| smoke test | – does not apply |" in text
    assert "| no slice worse | ✗ failed | target=&lt;b&gt;\\|x | none worse | slices |" in text
    assert text.index("| hold-out |") < text.rindex("| target=&lt;b&gt;") < text.index("| target=fine |")
    assert "| 100 | 0.5000 | 0.8000 | -0.3000 | -0.4000 | -0.2000 | 0.02 | ✗ worse |" in text
    page = report.decision_page(found)
    assert "<b>" not in text
    assert "<b>" not in page
    assert page.count('<tr class="failed">') == 2
    assert "default-src 'none'" in page
    lines = report.format_checks_table(found).splitlines()
    assert [line.split()[0] for line in lines] == ["✓", "–", "✓", "✗"]


def test_the_decision_is_json_for_programs() -> None:
    tree = json.loads(json.dumps(decision(WHOLE, WORSE, differences=DIFFERENCES).to_json_tree()))
    assert (tree["promote"], tree["fit"], tree["candidate"]) == (False, True, "7")
    assert tree["checks"][1]["name"] == "no slice worse"
    assert tree["differences"][2]["worse"] is True


@pytest.mark.parametrize("differences", [(), DIFFERENCES, DIFFERENCES[:1] + DIFFERENCES[1:2] * 40])
def test_the_picture_shows_the_checks_and_the_differences(differences: tuple[MetricDifference, ...]) -> None:
    figure = report.draw_gate_decision(decision(WHOLE, BETTER, WORSE, differences=differences))
    figure.savefig(io.BytesIO(), format="png")
    checks, *others = figure.axes
    assert "✗ no slice worse" in [text.get_text() for text in checks.texts]
    assert len(others) == bool(differences)
    if others:
        names = [label.get_text() for label in others[0].get_yticklabels()]
        assert names[0] == "hold-out (1,000)"
        assert len(names) == min(24, len(differences))
        assert ("17 more are not shown" in others[0].get_title(loc="left")) is (len(differences) > 24)
