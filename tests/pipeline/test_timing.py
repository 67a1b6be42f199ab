"""The time of a pipeline, and the steps that fit into a budget."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from samora_monai.errors import InputError
from samora_monai.networks import Segmenter
from samora_monai.pipeline.plan import EXPERTS, TEACHERS, TRAININGS
from samora_monai.pipeline.planning import timing
from samora_monai.pipeline.planning.lengths import Lengths, with_enough_steps
from samora_monai.pipeline.planning.timing import START_UP, Length, Speed, Work, fit_steps, given_steps
from samora_monai.pipeline.stages import stages_of
from tests.pipeline.plans import tiny_plan, write_lists
from tests.pipeline.scans import ct, labels, planned
from tests.tiny import refused

PRETRAINING = (*TEACHERS, *EXPERTS)
SPEED = Speed(steps={**dict.fromkeys(PRETRAINING, 1.0), "fine_tuning": 2.0}, slice=0.1)
NOTHING = dict.fromkeys(TRAININGS, 0.0)
WORK = Work(reading=NOTHING, validation=NOTHING, evaluation=0, prediction=0, most=dict.fromkeys(TRAININGS, 10**9))


def test_the_budget_is_shared_between_the_stages():
    """One run at a time: seven starts, and the rest of 85 % of an hour in the proportion 1 : 1 : 1 : 1 : 2 : 4."""
    steps, seconds = fit_steps(1, 60, SPEED, WORK, jobs=1)
    limit = 0.85 * 3600 - 60
    left = limit - 7 * START_UP
    for stage in TRAININGS:
        share = {"fine_tuning": 4, "pixel_expert": 2}.get(stage, 1) / 10 * left
        assert steps[stage][0] * SPEED.steps[stage] == pytest.approx(share, rel=0.03)
        assert steps[stage][0] % steps[stage][1] == 0
    assert 0.97 * limit < seconds <= limit


def test_runs_side_by_side_leave_time_for_more_steps():
    """Two teachers, then two experts, with the pixel expert after the first of these, and the fine-tuning alone."""
    one, two = ({name: count for name, (count, *_) in fit_steps(1, 0, SPEED, WORK, n)[0].items()} for n in (1, 2))
    left = 0.85 * 3600 - 5 * START_UP  # parts of the time in a row: teacher 1, expert 1, pixel expert 2, fine-tuning 4
    assert two["fine_tuning"] == pytest.approx(left * 4 / 8 / 2, rel=0.05)
    assert two["fine_tuning"] > 1.2 * one["fine_tuning"]


def test_other_work_takes_its_time_from_the_steps():
    plain = fit_steps(1, 0, SPEED, WORK, 1)[0]["fine_tuning"][0]
    for more in (
        {"evaluation": 300.0},
        {"prediction": 300.0},
        {"reading": dict.fromkeys(TRAININGS, 60.0)},
        {"validation": dict.fromkeys(TRAININGS, 20.0)},
        {"compare": True},
    ):
        steps, seconds = fit_steps(1, 0, SPEED, replace(WORK, **more), 1)
        assert 20 < steps["fine_tuning"][0] < 0.95 * plain, more
        assert seconds <= 0.85 * 3600


def test_validations_take_a_fifth_of_a_stage_at_most():
    slow = replace(WORK, validation=dict.fromkeys(TRAININGS, 30.0))
    for stage, length in fit_steps(1, 0, SPEED, slow, 1)[0].items():
        assert length.epochs == 10  # checkpoints cost little
        assert 30 * length.validations <= 0.21 * length.steps * SPEED.steps[stage]
        assert (length.validations, length.val_interval) == {"fine_tuning": (5, 2), "pixel_expert": (3, 4)}.get(
            stage, (1, 10)
        )


def test_no_stage_gets_more_steps_than_are_useful():
    few = replace(WORK, most=dict.fromkeys(TRAININGS, 100) | {"fine_tuning": 300})
    steps, seconds = fit_steps(10, 0, SPEED, few, 1)
    assert {stage: count for stage, (count, *_) in steps.items()} == few.most
    assert seconds < 2000


def test_a_budget_that_is_too_short_is_refused():
    with refused("hours is 0.05, but", "give at least --hours 0.1"):
        fit_steps(0.05, 0, SPEED, WORK, 1)
    assert fit_steps(0.1, 0, SPEED, WORK, 1)


def test_a_smaller_input_is_taken_where_the_fine_tuning_gets_too_few_steps():
    """256 pixels leave 75 steps, a quarter of enough; 128 pixels leave four times as many."""
    tried = []

    def fit(size: int) -> Lengths:
        tried.append(size)
        return Lengths({"fine_tuning": Length(75 * 256**2 // size**2, 1, 1)}, {}, 0.0)

    assert with_enough_steps(256, 96, fit)[0] == 128 and tried == [256, 128]
    assert with_enough_steps(256, 160, fit)[0] == 160
    assert with_enough_steps(96, 96, fit)[1].stages["fine_tuning"][0] == 533


def test_the_smallest_input_is_tried_before_a_budget_is_refused():
    def fit(size: int) -> Lengths:
        if size > 128:
            raise InputError("too short")
        return Lengths({"fine_tuning": Length(50, 1, 1)}, {}, 0.0)

    assert with_enough_steps(256, 128, fit)[0] == 128
    with refused("too short"):
        with_enough_steps(256, 160, fit)


def test_given_steps_have_whole_epochs():
    for count in (1, 7, 50, 333, 10_000):
        for stage, (steps, epochs, val_interval) in given_steps(count).items():
            assert steps % epochs == 0 and 1 <= epochs <= 10 and -(-epochs // val_interval) <= 2
            assert steps == pytest.approx(count * {"fine_tuning": 1, "pixel_expert": 0.5}.get(stage, 0.125), abs=9)


def test_a_step_with_unlabelled_scans_is_timed_as_it_will_be(
    phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Four slices as they are, four mixed ones, and four weak views through the teacher, without gradients."""
    monkeypatch.setattr(timing, "_SECONDS", 0.0)
    monkeypatch.setattr(timing, "_LONG", 1e9)
    seen: list[tuple[int, bool]] = []
    forward = Segmenter.forward

    def counted(self: Segmenter, x: torch.Tensor, *args: Any) -> Any:
        seen.append((len(x), torch.is_grad_enabled()))
        return forward(self, x, *args)

    monkeypatch.setattr(Segmenter, "forward", counted)
    plan = tiny_plan(tmp_path / "base.pt")
    write_lists(phantoms, tmp_path)
    settings = {"dataset_dir": str(tmp_path / "data"), **plan.data, **plan.network, **plan.stages["fine_tuning"]}
    settings |= {"device": "cpu", "amp": False}
    steps = {}
    for unlabeled in (False, True):
        seen.clear()
        seconds = timing._step_seconds(timing._parser("fine_tuning", {**settings, "unlabeled": unlabeled}), plan.run)
        assert seconds > 0
        steps[unlabeled] = set(seen[-2:]) if unlabeled else {seen[-1]}
    assert steps == {False: {(4, True)}, True: {(4, False), (8, True)}}


def test_a_plan_with_unlabelled_scans_counts_them(tmp_path: Path):
    """In time and memory; without such scans it is refused."""
    folder = tmp_path / "data"
    ct(folder / "a.nii.gz"), labels(folder / "a_seg.nii.gz", 1)
    with refused("--unlabeled:", "no scan without a label"):
        planned(folder, tmp_path / "run", unlabeled=True)
    ct(folder / "u.nii.gz", seed=9)
    plans = [planned(folder, tmp_path / "run", unlabeled=unlabeled) for unlabeled in (False, True)]
    assert [plan.stages["fine_tuning"]["unlabeled"] for plan in plans] == [False, True]
    work = [next(s.work for s in stages_of(p, tmp_path / "run") if s.name == "fine_tuning") for p in plans]
    assert work[1] == 2 * work[0]
    memory = [float(re.search(r"about (\S+) of", plan.reasons["network.image_size"])[1]) for plan in plans]
    assert memory[1] > memory[0]


def test_a_plan_within_a_budget_is_measured_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The networks of all configs take one step each; the number of threads is as before."""
    monkeypatch.setattr(timing, "_SECONDS", 0.0)
    monkeypatch.setattr(timing, "_LONG", 0.0)
    before = torch.get_num_threads()
    for i, name in enumerate("abc"):
        ct(tmp_path / f"data/{name}.nii.gz", seed=i), labels(tmp_path / f"data/{name}_seg.nii.gz", 1)
    ct(tmp_path / "data/u.nii.gz", seed=9)
    plan = planned(tmp_path / "data", tmp_path / "run", hours=20, steps=None)
    assert torch.get_num_threads() == before
    assert plan.run["hours"] == 20 and "expected time" in plan.reasons["run.hours"]
    for name in TRAININGS:
        assert "s a step" in plan.reasons[f"stages.{name}.steps"]
        assert plan.stages[name]["steps"] >= 1000
    with refused("give at least --hours"):
        planned(tmp_path / "data", tmp_path / "run", hours=0.001, steps=None)
