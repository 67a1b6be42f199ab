"""The order of the cases by entropy and by Dice, in words."""

from __future__ import annotations

import math
from pathlib import Path

from samora_monai.report.confidence import order_sentence
from tests.report.test_report import evaluate, item, rows_of


def test_the_order_is_spearmans_rank_correlation():
    """Ranks 1 2 3 4 against 3 4 2 1: 1 - 6 (4 + 4 + 1 + 9) / (4 (16 - 1)) = -0.8; the values do not matter."""
    dice = {"a": 0.8, "b": 0.9, "c": 0.7, "d": 0.1, "no class": math.nan, "nothing found": 0.0}
    entropy = {"a": 0.1, "b": 0.2, "c": 0.3, "d": 0.9, "no class": 0.5, "nothing found": math.nan}
    assert "orders 4 cases by their Dice with a rank correlation of -0.80 (Spearman;" in order_sentence(dice, entropy)


def test_no_order_of_three_cases_or_of_equal_figures():
    assert order_sentence({"a": 0.1, "b": 0.2, "c": 0.3}, {"a": 0.1, "b": 0.2, "c": 0.3}) == ""
    equal, rising = dict.fromkeys("abcde", 0.5), {case: i / 10 for i, case in enumerate("abcde")}
    assert order_sentence(equal, rising) == order_sentence(rising, equal) == ""


def test_report_and_log_state_the_order(tmp_path: Path, caplog):
    """Dice 1, 0.5, 0 and 0: the shift grows with the entropy, but for one case that is as bad as the last."""
    caplog.set_level("INFO", "samora_monai")
    evaluate(tmp_path, [item(f"/d/{n}.nii.gz", 1 + n, (1, 2), entropy=n / 10) for n in range(4)])
    rows = rows_of(tmp_path / "cases.csv")
    assert [(row["case"], row["dice"], row["entropy"]) for row in rows] == [
        ("0", "1.000000", "0.000000"), ("1", "0.500000", "0.100000"),
        ("2", "0.000000", "0.200000"), ("3", "0.000000", "0.300000"),
    ]  # fmt: skip
    sentence = "orders 4 cases by their Dice with a rank correlation of -0.95 (Spearman;"
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert any(sentence in line for line in caplog.messages) and sentence in page
    assert "Entropy of the prediction: 0.00." in page  # of the best case


def test_a_prediction_of_unknown_entropy_is_nan(tmp_path: Path):
    evaluate(tmp_path, [item("/d/a.nii.gz")])
    assert rows_of(tmp_path / "cases.csv")[0]["entropy"] == "nan"
    assert "Entropy of the prediction" not in (tmp_path / "report.html").read_text(encoding="utf-8")
