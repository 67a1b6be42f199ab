"""Clusters around labelled scans, and one scan of each other cluster."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from samora_monai.selection import choose
from samora_monai.selection.clusters import constrained_kmeans, squared_distances
from tests.tiny import refused

BLOBS = {"left": (-10, 0), "right": (10, 0), "top": (0, 10)}


def blobs(sizes: dict[str, int], seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.normal(BLOBS[name], 0.5, (size, 2)) for name, size in sizes.items()])


def pick(points: np.ndarray, budget: int, labelled=(), held_out=(), patients=None, same=lambda a, b: False):
    names = [str(i) for i in range(len(points))] if patients is None else patients
    return choose(points, labelled, held_out, budget, names, same)


def test_kmeans_finds_the_best_of_all_partitions():
    points = np.random.default_rng(1).normal(size=(9, 2))
    fixed = np.array([[1.0, 1.0]])
    best = np.inf
    for labels in itertools.product(range(3), repeat=9):
        own = np.array(labels)
        groups = [points[own == c] for c in range(2)]
        if all(len(group) for group in groups):
            total = sum(((group - group.mean(0)) ** 2).sum() for group in groups)
            best = min(best, total + ((points[own == 2] - fixed) ** 2).sum())
    centers, nearest = constrained_kmeans(points, np.ones(9), fixed, 2)
    distances = squared_distances(points, np.concatenate([centers, fixed]))
    assert distances.min(1).sum() == pytest.approx(best)
    np.testing.assert_array_equal(nearest, distances.argmin(1))


def test_each_blob_gives_its_medoid_and_the_largest_comes_first():
    points = blobs({"left": 5, "right": 9, "top": 7})
    choices = pick(points, 3)
    assert [len(choice.cluster) for choice in choices] == [9, 7, 5]
    for choice in choices:
        own = points[list(choice.cluster)]
        medoid = choice.cluster[squared_distances(own, own).sum(1).argmin()]
        assert choice.scan == medoid == choice.cluster[0]


def test_the_choice_is_the_same_in_each_run():
    points = np.random.default_rng(2).normal(size=(40, 5))
    assert pick(points, 6) == pick(points, 6)


def test_no_scan_is_spent_on_the_neighbourhood_of_a_labelled_one():
    points = blobs({"left": 20, "right": 6, "top": 6})
    chosen = [choice.scan for choice in pick(points, 2, labelled=[0])]
    assert {scan >= 20 for scan in chosen} == {True}
    assert {scan >= 26 for scan in chosen} == {True, False}


def test_validation_scans_cover_nothing_and_are_not_chosen():
    points = blobs({"left": 8, "right": 5})
    (choice,) = pick(points, 1, held_out=[0, 1])
    assert choice.scan not in (0, 1)
    assert choice.scan < 8


def test_of_one_patient_only_one_scan_is_chosen():
    """Nine patients, the first of whom has every scan on the left and the middle of the right."""
    points = blobs({"left": 9, "right": 9})
    patients = ["a"] * 9 + [f"p{i}" for i in range(9)]
    free = pick(points, 2)
    patients[next(choice.scan for choice in free if choice.scan >= 9)] = "a"
    choices = pick(points, 2, patients=patients)
    assert len({patients[choice.scan] for choice in choices}) == 2


def test_a_scan_of_a_labelled_patient_is_passed_over_and_named():
    points = blobs({"left": 9, "right": 3})
    middle = pick(points, 2)[0].scan
    (first, _) = pick(points, 2, held_out=[9], same=lambda a, b: {a, b} == {9, middle})
    assert first.scan == first.cluster[1]
    assert first.passed_over == ((middle, 9),)


def test_a_cluster_of_one_known_patient_gives_way_to_the_farthest_other_scan():
    points = np.array([[0.0, 0], [0, 1], [9, 0], [9, 1], [9, 5]])
    patients = ["a", "b", "c", "c", "c"]
    choices = pick(points, 2, held_out=[2], patients=patients)
    assert {choice.scan for choice in choices} == {0, 1}
    assert [choice.outside for choice in choices] == [False, True]


def test_a_patient_with_many_scans_counts_once():
    """Without weights both centres would go to the forty scans of one patient."""
    rng = np.random.default_rng(0)
    many = np.concatenate([rng.normal((-1, 0), 0.1, (20, 2)), rng.normal((1, 0), 0.1, (20, 2))])
    points = np.concatenate([many, [[0, 2.0], [0.1, 2.0], [0, 2.1]]])
    patients = ["many"] * 40 + ["x", "y", "z"]
    choices = pick(points, 2, patients=patients)
    assert {choice.scan >= 40 for choice in choices} == {True, False}
    assert sorted(len(choice.cluster) for choice in choices) == [3, 40]


def test_too_few_patients_are_refused():
    points = blobs({"left": 4})
    with refused("budget is 3", "only 2 scans", "--budget 2", "--patient_pattern"):
        pick(points, 3, patients=["a", "a", "b", "b"])


def test_equal_scans_can_be_clustered():
    assert len({choice.scan for choice in pick(np.zeros((5, 2)), 3)}) == 3


def test_a_likeness_of_anatomy_is_a_doubt_where_no_other_scan_is_left():
    points = blobs({"left": 2, "right": 2})
    choices = pick(points, 3, same=lambda a, b: 0.7)
    assert len({choice.scan for choice in choices}) == 3
    assert [choice.looks_like is not None for choice in choices] == [False, True, True]
    with refused("only 1 scans", "--budget 1"):
        pick(points, 3, same=lambda a, b: 0.95)
