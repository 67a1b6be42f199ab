"""Clusters of scans around those that have a label, and the scan in the middle of each other cluster."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from samora_monai.errors import InputError
from samora_monai.selection.patients import SAME_ANATOMY, SURELY_SAME

RESTARTS = 20  # of k-means
ITERATIONS = 100


@dataclass(frozen=True)
class Choice:
    """A chosen scan.

    Args:
        scan: its index.
        cluster: indices of the unlabelled scans of its cluster, itself among them, from the middle outwards.
        passed_over: scans nearer to the middle of the cluster, each with the scan that has its patient.
        outside: whether no scan of the cluster was left, so that the scan is from another one, the farthest from all
            that are chosen or labelled.
        looks_like: a scan that may be of the same patient by its anatomy, where only such scans were left.
    """

    scan: int
    cluster: tuple[int, ...]
    passed_over: tuple[tuple[int, int], ...] = ()
    outside: bool = False
    looks_like: int | None = None


def constrained_kmeans(
    points: np.ndarray, weights: np.ndarray, fixed: np.ndarray, k: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """K-means with `k` free centres and others that do not move: the best of `RESTARTS` k-means++ starts.

    Args:
        points: `[N, D]`, N >= k.
        weights: `[N]`, positive.
        fixed: `[F, D]`, F >= 0.
        seed: equal seeds give equal results.

    Returns:
        the free centres `[k, D]`, and the index of the nearest centre for each point `[N]`: free ones first.
    """
    rng = np.random.default_rng(seed)
    best, result = np.inf, None
    for _ in range(RESTARTS):
        centers = _start(points, weights, fixed, k, rng)
        for _ in range(ITERATIONS):
            distances = squared_distances(points, np.concatenate([centers, fixed]))
            nearest = distances.argmin(1)
            moved = centers.copy()
            for c in range(k):
                if (own := nearest == c).any():
                    moved[c] = np.average(points[own], axis=0, weights=weights[own])
                else:  # the point that is worst represented
                    moved[c] = points[(weights * distances.min(1)).argmax()]
            if np.array_equal(moved, centers):
                break
            centers = moved
        distances = squared_distances(points, np.concatenate([centers, fixed]))
        total = float((weights * distances.min(1)).sum())
        if total < best * (1 - 1e-9):
            best, result = total, (centers, distances.argmin(1))
    assert result is not None
    return result


def _start(points: np.ndarray, weights: np.ndarray, fixed: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """Centres of k-means++: points drawn in proportion to their squared distance from the centres so far."""
    centers = fixed
    for _ in range(k):
        mass = weights * (squared_distances(points, centers).min(1) if len(centers) else 1)
        mass = mass if mass.sum() > 0 else weights
        centers = np.concatenate([centers, points[[rng.choice(len(points), p=mass / mass.sum())]]])
    return centers[len(fixed) :]


def squared_distances(points: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """`[N, D]` and `[M, D]` -> `[N, M]`."""
    products = points @ centers.T
    return ((points**2).sum(1)[:, None] + (centers**2).sum(1) - 2 * products).clip(0)


def choose(
    embeddings: np.ndarray,
    labelled: Sequence[int],
    held_out: Sequence[int],
    budget: int,
    patients: Sequence[str],
    likeness: Callable[[int, int], float],
) -> list[Choice]:
    """Choose the unlabelled scans to label: the middle scan of each cluster, the largest cluster first.

    Labelled scans are centres that do not move, so that no other centre is spent on their neighbourhood. A scan of a
    patient who has a chosen, labelled or held-out scan is passed over.

    Args:
        embeddings: `[N, D]`, of all scans.
        labelled: indices of the scans with a label for training.
        held_out: indices of the scans with a label for validation, which train nothing.
        budget: number of scans to choose, at least 1.
        patients: name of the patient of each scan.
        likeness: correlation of the anatomy of two scans, 1 for one scan twice; from `SAME_ANATOMY` on they are of one
            patient although their names differ. Where no other scan is left, `SURELY_SAME` counts.

    Raises:
        InputError: there are fewer scans of different patients.
    """
    known = {*labelled, *held_out}
    candidates = np.array([i for i in range(len(embeddings)) if i not in known], dtype=int)
    assert 1 <= budget <= len(candidates)
    taken = [*labelled, *held_out]

    def owner(scan: int, least: float = SAME_ANATOMY) -> int | None:
        """The taken scan of this scan's patient."""
        return next((t for t in taken if patients[t] == patients[scan] or likeness(t, scan) >= least), None)

    scans_of = {name: sum(patients[i] == name for i in candidates) for name in set(patients)}
    weights = np.array([1 / scans_of[patients[i]] for i in candidates])  # a patient with many scans counts once
    points = embeddings[candidates]
    centers, nearest = constrained_kmeans(points, weights, embeddings[list(labelled)], budget)
    distances = squared_distances(points, centers)
    clusters = [candidates[own[distances[own, c].argsort(kind="stable")]] for c, own in _members(nearest, budget)]
    choices: list[Choice] = []
    for cluster in sorted(clusters, key=len, reverse=True):
        passed_over: list[tuple[int, int]] = []
        for scan in cluster.tolist():
            if (other := owner(scan)) is None:
                choices.append(Choice(scan, tuple(cluster.tolist()), tuple(passed_over)))
                taken.append(scan)
                break
            passed_over.append((scan, other))
    while len(choices) < budget:
        far = squared_distances(points, embeddings[taken]).min(1) if taken else weights
        free = [i for i in candidates[far.argsort(kind="stable")[::-1]].tolist() if i not in taken]
        scan = next((i for i in free if owner(i) is None), None)
        if scan is None:
            scan = next((i for i in free if owner(i, SURELY_SAME) is None), None)
        if scan is None:
            raise InputError(
                f"budget is {budget} but only {len(choices)} scans without a label are of different patients who have "
                f"no label yet; give --budget {max(len(choices), 1)}, or say how names tell the patient with "
                "--patient_pattern REGEX"
            )
        choices.append(Choice(scan, (scan,), outside=True, looks_like=owner(scan)))
        taken.append(scan)
    return choices


def _members(nearest: np.ndarray, k: int) -> list[tuple[int, np.ndarray]]:
    """The positions of the points of each of the first `k` clusters."""
    return [(c, np.flatnonzero(nearest == c)) for c in range(k)]
