"""Imaginary creatures: reproducible, told apart by form and place and not by grey, quick to make."""

from __future__ import annotations

import sys
import time

import numpy as np
import pytest
from monai.transforms import Compose, EnsureChannelFirstd

from samora_monai.data import CheckCased, LoadCased, find_cases, resolve_class_names
from samora_monai.synthetic import creatures
from samora_monai.synthetic.creatures import CLASS_NAMES, FIRST_ORGAN, arrange, make_slice, write_creatures


@pytest.fixture(scope="module")
def pairs():
    return [make_slice((0, k), 96) for k in range(60)]


def test_folder_is_a_data_set(tmp_path):
    datalist = write_creatures(tmp_path, num_training=2, num_validation=1, slices=6, side=48, seed=2)
    cases = find_cases(tmp_path)
    assert cases.source == str(datalist)
    assert (len(cases.training), len(cases.validation), cases.modality) == (2, 1, "CT")
    names = resolve_class_names(cases)
    assert names == CLASS_NAMES and len(names) == 15
    read = Compose([LoadCased(["image", "label"]), EnsureChannelFirstd(["image", "label"])])
    for number, case in enumerate(cases.training + cases.validation, 1):
        item = CheckCased("image", num_classes=len(names))(read(dict(case)))
        assert item["image"].shape == (1, 48, 48, 6)
        for k in range(6):
            image, label = make_slice((2, number, k), 48)
            np.testing.assert_array_equal(item["image"][0, ..., k], image)
            np.testing.assert_array_equal(item["label"][0, ..., k], label)


def test_deterministic_and_varied(pairs):
    for k in (0, 7):
        for one, same in zip(pairs[k], make_slice((0, k), 96), strict=True):
            np.testing.assert_array_equal(one, same)
    images = np.stack([image for image, _ in pairs]).astype(float)
    assert images.min() >= -125 and images.max() <= 275
    assert min(image.std() for image in images) > 15  # of 400: none is flat


def test_every_organ_is_found_in_most_pictures(pairs):
    labels = np.stack([label for _, label in pairs])
    shown = np.array([[(label == k).sum() > 10 for k in range(len(CLASS_NAMES))] for label in labels]).mean(0)
    assert shown[:FIRST_ORGAN].min() == 1 and shown[FIRST_ORGAN:].min() > 0.5
    assert shown[FIRST_ORGAN:].max() < 1, "organs are missing at times"
    part = np.bincount(labels.ravel(), minlength=len(CLASS_NAMES)) / labels.size
    assert 0.3 < part[0] < 0.8 and part[FIRST_ORGAN:].min() > 0.0005


def test_organs_keep_their_places_in_all_pictures(pairs):
    """The mean place of an organ differs from that of the others by more than it moves."""
    places = {}
    for number, organ in enumerate(arrange(creatures.SPECIES), FIRST_ORGAN):
        found = [np.argwhere(label == number).mean(0) / 96 for _, label in pairs if (label == number).sum() > 10]
        np.testing.assert_allclose(np.mean(found, axis=0), organ.center, atol=0.12)
        places[number] = np.mean(found, axis=0)
    gaps = [np.linalg.norm(a - b) for i, a in places.items() for j, b in places.items() if i < j]
    assert np.median(gaps) > 0.2


def test_grey_does_not_tell_the_organs_apart(pairs):
    """The mean grey value of each organ varies more from picture to picture than it differs between organs."""
    grey = [
        [image[label == k].mean() if (label == k).any() else np.nan for k in range(FIRST_ORGAN, len(CLASS_NAMES))]
        for image, label in pairs
    ]
    within, between = np.nanstd(grey, axis=0).mean(), np.nanstd(np.nanmean(grey, axis=0))
    assert within > 3 * between


def test_a_picture_takes_milliseconds():
    start = time.process_time()
    for k in range(10):
        make_slice((1, k), 96)
    assert (time.process_time() - start) / 10 < 0.2


def test_command_line(tmp_path, monkeypatch, capsys):
    command = ["creatures", str(tmp_path), "--training", "1", "--validation", "1", "--slices", "2", "--side", "32"]
    monkeypatch.setattr(sys, "argv", command)
    creatures.main()
    assert capsys.readouterr().out.strip() == str(tmp_path / "dataset.json")
    (tmp_path / "file").touch()
    monkeypatch.setattr(sys, "argv", ["creatures", str(tmp_path / "file")])
    with pytest.raises(SystemExit, match="file"):
        creatures.main()
