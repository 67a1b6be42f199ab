"""The lines that a user reads during training."""

from __future__ import annotations

import re

import pytest
import torch
from ignite.engine import Events

from samora_monai.handlers.progress import Progress, duration

LINE = re.compile(r"epoch (\d+)/4  ([\d.]+)%  loss ([\d.]+)  lr (\d\.\de-?\d+)  [\d.]+ slices/s  ETA (\d\d:\d\d:\d\d)$")


def lines_of(run, caplog):
    caplog.set_level("INFO", "samora_monai")
    caplog.clear()
    run.trainer.run()
    return caplog.messages


@pytest.mark.parametrize("decollate", [True, False])
def test_lines(build, tmp_path, caplog, decollate):
    run, losses = build(tmp_path, decollate=decollate), []

    def note(engine):
        output = engine.state.output
        losses.append(torch.as_tensor((output[0] if decollate else output)["loss"]).item())

    run.trainer.add_event_handler(Events.ITERATION_COMPLETED, note)
    lines = lines_of(run, caplog)
    progress = [match for line in lines if (match := LINE.match(line))]
    assert len(progress) == len(lines) - 4 == 4 * (2 + 1)  # interval 0: each iteration, the epoch instead of its last
    assert [p[1] for p in progress] == [str(e) for e in range(1, 5) for _ in range(3)]
    assert [float(p[2]) for p in progress[:3]] == [8.3, 16.7, 25.0]
    assert [float(p[3]) for p in progress[:3]] == pytest.approx([*losses[:2], sum(losses[:3]) / 3], rel=1e-3)
    assert progress[0][4] == "2.5e-2"
    assert progress[-1][5] == "00:00:00"


def test_validation_lines(build, tmp_path, caplog):
    run = build(tmp_path)
    lines = [line for line in lines_of(run, caplog) if line.startswith("validation")]
    assert len(lines) == 4
    best = run.best.state_dict()
    line = f"validation mean Dice {best['best_metric']:.4g} (best {best['best_metric']:.4g} at epoch "
    assert lines[best["best_metric_epoch"] - 1] == f"{line}{best['best_metric_epoch']}, saved)"
    assert re.fullmatch(r"validation mean Dice [\d.]+ \(best [\d.]+ at epoch 1, saved\)", lines[0])


def test_time_left_counts_this_run_only(build, tmp_path, caplog, monkeypatch):
    """Resumed at iteration 6 of 12; one second per iteration leaves 5 seconds after the first."""
    first = build(tmp_path, epochs=2)
    first.last.start()
    first.trainer.run()
    run = build(tmp_path, epochs=4)
    run.last.start(resume=True)
    clock = iter(range(10_000))
    monkeypatch.setattr("samora_monai.handlers.progress.time.monotonic", lambda: next(clock))
    first = next(line for line in lines_of(run, caplog) if line.startswith("epoch"))
    start, printed = 0, 4  # readings: start; epoch; line; check, print
    assert first.endswith(f"ETA {duration((printed - start) * 5)}")
    assert first.startswith("epoch 3/4  58.3%")


def test_quiet_on_other_ranks(build, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("samora_monai.handlers.progress.idist.get_rank", lambda: 1)
    assert lines_of(build(tmp_path), caplog) == []


def test_interval_thins_the_lines(build, tmp_path, caplog):
    run = build(tmp_path)
    Progress(interval=3600).attach(run.trainer)  # second handler: epoch lines only
    lines = [line for line in lines_of(run, caplog) if line.startswith("epoch")]
    assert len(lines) == 12 + 4


def test_duration():
    assert [duration(s) for s in (0, 59.6, 3601, 100 * 3600)] == ["00:00:00", "00:01:00", "01:00:01", "100:00:00"]
