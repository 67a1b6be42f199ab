"""Which scan is handed out next: representative, uncertain, or both."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import pytest

from samora_monai.selection import NextScan, Pool
from tests.tiny import refused


class Known(Pool):
    """A pool of points in a plane, where scans of the same letter have one anatomy if they are `twins`."""

    def __init__(self, points: dict[str, tuple[float, float]], twins: Sequence[str] = ()) -> None:
        super().__init__(dict.fromkeys(points, np.zeros((1, 1))), {})
        self.points, self.twins = points, twins

    @cached_property
    def embeddings(self) -> np.ndarray:
        return np.array([self.points[name] for name in self.names], float)

    @cached_property
    def likeness(self):
        return lambda a, b: float(self.names[a][0] == self.names[b][0] and self.names[a][0] in self.twins)


def blobs(sizes: dict[str, int], **options) -> Known:
    """`a` is at the left, `b` at the right, `c` above; the first scan of each is in the middle."""
    rng, middles = np.random.default_rng(0), {"a": (-10, 0), "b": (10, 0), "c": (0, 10)}
    points = {}
    for letter, size in sizes.items():
        near = rng.normal(0, 0.5, (size - 1, 2))
        near -= near.mean(0)
        for i, offset in enumerate([(0.0, 0.0), *near]):
            points[f"{letter}{i}"] = tuple(np.add(middles[letter], offset))
    return Known(points, **options)


def ask(pool: Pool, labelled=(), asked=(), last=None, patients=None, uncertainty=None) -> NextScan:
    names = pool.names
    unlabelled = [name for name in names if name not in labelled]
    return NextScan(unlabelled, labelled, patients or {n: n for n in names}, asked, last, pool, uncertainty or {})


def test_representative_scans_come_from_each_cluster():
    pool, labelled = blobs({"a": 5, "b": 9, "c": 7}), []
    for _ in range(3):
        labelled.append(ask(pool, labelled, last=labelled[-1] if labelled else None).representative())
    assert {name[0] for name in labelled} == {"a", "b", "c"}


def test_a_scan_that_was_handed_out_is_not_handed_out_again_at_once():
    pool = blobs({"a": 4, "b": 4, "c": 4})
    asked: list[str] = []
    for _ in range(12):
        asked.append(ask(pool, asked=asked, last=asked[-1] if asked else None).representative())
    assert sorted(asked) == pool.names
    assert {name[0] for name in asked[:3]} == {"a", "b", "c"}
    again = ask(pool, asked=asked, last=asked[-1]).representative()
    assert again in pool.names and again != asked[-1]


def test_scans_of_one_patient_are_not_handed_out_in_a_row():
    """By name, and, for scans of other names, by anatomy; only where no other is left."""
    pool = blobs({"a": 3, "b": 3})
    by_name = {name: name[0] for name in pool.names}
    scores = {name: float(name[0] == "a") + i / 100 for i, name in enumerate(pool.names)}
    assert ask(pool, last="a0", asked=["a0"], uncertainty=scores).uncertain()[0] == "a"
    assert ask(pool, last="a0", asked=["a0"], patients=by_name, uncertainty=scores).uncertain()[0] == "b"
    assert ask(pool, last="a0", asked=["a0"], patients=by_name).representative()[0] == "b"
    twins = blobs({"a": 3, "b": 3}, twins="a")
    assert ask(twins, last="a0", asked=["a0"], uncertainty=scores).uncertain()[0] == "b"
    done = ["b0", "b1", "b2"]
    assert ask(twins, labelled=done, last="a0", asked=["a0"], uncertainty=scores).uncertain() in ("a1", "a2")


def test_uncertain_is_the_highest_score_of_those_without_a_label():
    pool = blobs({"a": 3})
    scores = {"a0": 0.9, "a1": 0.5, "a2": 0.7}
    assert ask(pool, uncertainty=scores).uncertain() == "a0"
    assert ask(pool, labelled=["a0"], uncertainty=scores).uncertain() == "a2"
    with refused("none of 3 scans was scored by the model so far"):
        ask(pool).uncertain()


def test_mixed_goes_from_representative_to_uncertain():
    pool = blobs({"a": 10, "b": 12, "c": 6})
    scores = {name: {"a": 0.1, "b": 0.2, "c": 0.3}[name[0]] + i / 1000 for i, name in enumerate(pool.names)}
    few = ask(pool, labelled=["a0", "b0"], uncertainty=scores)
    assert few.mixed() == few.representative()
    labelled = ["a0", "b0", "c0", *(f"b{i}" for i in range(1, 10))]  # 12: a third of 16 is considered, 6
    chosen = ask(pool, labelled=labelled, uncertainty=scores).mixed()
    assert chosen in sorted(set(pool.names) - set(labelled), key=lambda name: -scores[name])[:6]
    with refused("1 of 16 scans were scored by the model so far"):
        ask(pool, labelled=labelled, uncertainty={"a1": 1.0}).mixed()


def test_nothing_is_chosen_without_features():
    with refused("features of 1 scans are known"):
        ask(Known({"a": (0, 0)})).representative()


@pytest.mark.parametrize("labelled", [[], ["a0"]])
def test_scans_of_few_patients_are_all_handed_out(labelled: list[str]):
    pool = blobs({"a": 3, "b": 2})
    patients = {name: name[0] for name in pool.names}
    asked = list(labelled)
    for _ in range(5 - len(labelled)):
        rest = [name for name in asked if name not in labelled]
        now = ask(pool, labelled, rest, asked[-1] if asked else None, patients)
        asked.append(now.representative())
    assert sorted(asked) == pool.names
