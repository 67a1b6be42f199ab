"""The time that a pipeline takes on this machine, and the steps that fit into a time budget.

The networks, losses and random transforms that are timed are those of the bundles' configs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple

import torch
from ignite.engine import Engine
from monai.bundle import ConfigParser
from monai.data.utils import list_data_collate
from monai.engines import default_prepare_batch
from monai.transforms import Compose
from monai.utils import convert_to_tensor
from tqdm import tqdm

from samora_monai.errors import InputError
from samora_monai.pipeline.plan import CONFIGS, EXPERTS, TEACHERS, TRAININGS, bundle_of
from samora_monai.semi_supervised import TwoViews, default_decay
from samora_monai.semi_supervised.paired_slices import UNLABELED
from samora_monai.semi_supervised.two_views import WEAK

START_UP = 8.0  # seconds of a process until it reads its scans
# of the work of all stages; the pixel expert trains a decoder of its own
SHARES = {**dict.fromkeys((*TEACHERS, *EXPERTS), 0.1), "pixel_expert": 0.2, "fine_tuning": 0.4}
FEWEST = {**dict.fromkeys((*TEACHERS, *EXPERTS), 20), "fine_tuning": 50}  # steps that a stage gets in any case
_OF_BUDGET = 0.85  # the rest is a reserve
_VALIDATION = 0.2  # of a stage's time at most
_VALIDATIONS = 2  # where steps are given
# in units of the fine-tuning's steps, where these are given
_STEPS = {**dict.fromkeys(SHARES, 0.125), "pixel_expert": 0.5, "fine_tuning": 1.0}
_EPOCHS = 10
_STEPS_OF_AN_EPOCH = 20
_SECONDS, _REPEATS = 0.6, 5  # of a measurement
_LONG = 2.0  # seconds; a batch that takes longer is timed with fewer slices


@dataclass(frozen=True)
class Speed:
    """Measured times in seconds.

    Args:
        steps: of one training step of each stage, with its random transforms.
        slice: of one slice in inference.
    """

    steps: Mapping[str, float]
    slice: float


@dataclass(frozen=True)
class Work:
    """What takes time beside the training steps.

    Args:
        reading: seconds of one core to read the scans of a stage.
        validation: seconds of one validation of each stage.
        evaluation, prediction: seconds of these runs, without start-up; 0 if there is none.
        most: most steps of each stage.
        compare: whether SAMed is trained too.
    """

    reading: Mapping[str, float]
    validation: Mapping[str, float]
    evaluation: float
    prediction: float
    most: Mapping[str, int]
    compare: bool = False


class Length(NamedTuple):
    """Length of a stage: its steps, the epochs that they are divided into, and the epochs between validations."""

    steps: int
    epochs: int
    val_interval: int

    @property
    def validations(self) -> int:
        """Number of validations; the last epoch has one."""
        return -(-self.epochs // self.val_interval)


def measure(settings: Mapping[str, Mapping[str, Any]], run: Mapping[str, Any], plane: tuple[int, int]) -> Speed:
    """Time one training step of each stage, and the inference of one slice; takes some seconds.

    Args:
        settings: overrides of the configs of each stage of `TRAININGS`.
        run: `device`, `amp`, `num_workers` and `threads` of the plan.
        plane: size of the slices in inference.
    """
    steps = {}
    with _threads(run["threads"]):
        for stage in tqdm(TRAININGS, "timing this machine", unit="stage", disable=None):
            parser = _parser(stage, {**settings[stage], "device": run["device"], "amp": run["amp"]})
            steps[stage] = _step_seconds(parser, run)
        network = parser.get_parsed_content("network").eval()
        bfloat16 = parser.get_parsed_content("bfloat16")
        with torch.no_grad(), torch.autocast(torch.device(run["device"]).type, torch.bfloat16, enabled=bfloat16):
            count = 4
            x = torch.rand(count, 1, *plane, device=run["device"])
            seconds = _seconds(lambda: network(x).max(1).indices, run["device"])
    return Speed(steps, seconds / count)


def _parser(stage: str, settings: Mapping[str, Any]) -> ConfigParser:
    configs = bundle_of(stage) / "configs"
    parser = ConfigParser(ConfigParser.load_config_files([str(configs / name) for name in CONFIGS[stage]]))
    parser.update({**settings, "bundle_root": str(configs.parent)})
    parser.parse()
    return parser


def _step_seconds(parser: ConfigParser, run: Mapping[str, Any]) -> float:
    """Seconds of a training step, with the transforms of its slices."""
    batch_size, size, device = parser["batch_size"], parser["image_size"], run["device"]
    transform = parser.get_parsed_content("train::dataset::slice_transform")
    transform = transform if callable(transform) else Compose(transform)
    labelled = "data_set" in parser
    item = {"image": torch.rand(1, size, size)}
    if labelled:
        item["label"] = torch.randint(0, 2, (1, size, size), dtype=torch.uint8)
    paired = labelled and default_decay(parser["unlabeled"]) is not None
    views = TwoViews(parser.get_parsed_content("train::random_transforms")) if paired else None

    def draw() -> Any:
        drawn = transform(dict(item))
        if views is not None:
            other = views({"image": item["image"]})
            drawn |= {UNLABELED: other["image"], WEAK: other[WEAK]}
        return convert_to_tensor(drawn, track_meta=False)

    draw()
    of_slice = _seconds(draw, "cpu")
    network = parser.get_parsed_content("network").train()
    inferer, loss = parser.get_parsed_content("train::inferer"), parser.get_parsed_content("loss")
    optimizer = parser.get_parsed_content("optimizer")
    average = parser.get_parsed_content("average") if paired else None
    if average is not None:  # the teacher's weight depends on the progress of a training
        average.attach(engine := Engine(lambda *_: None))
        engine.state.max_epochs = engine.state.epoch_length = 1
    ids = ("prepare_batch", "train::trainer::prepare_batch")
    prepare = next((parser.get_parsed_content(name) for name in ids if name in parser), default_prepare_batch)

    def step(batch: Any) -> None:
        x, target, *more = prepare(batch, device, False)
        args, kwargs = more if more else ((), {})
        optimizer.zero_grad()
        loss(inferer(x, network, *args, **kwargs), target).mean().backward()
        optimizer.step()
        if average is not None:
            average.update()

    items = [draw() for _ in range(min(batch_size, 2))]  # contrastive learning needs two
    count = len(items)
    step(list_data_collate(items))  # warm-up
    small = list_data_collate(items)
    rough = _seconds(lambda: step(small), device, repeats=1) / count
    fits = int(max(count, min(batch_size, _LONG / rough)))
    batch = list_data_collate([items[i % count] for i in range(fits)])
    of_step = _seconds(lambda: step(batch), device) * batch_size / fits
    of_data = of_slice * batch_size
    return max(of_step, of_data / run["num_workers"]) if run["num_workers"] else of_step + of_data


def _seconds(call: Callable[[], Any], device: str, repeats: int = _REPEATS) -> float:
    """Median time of a call, which is repeated for `_SECONDS`, at least once and at most `repeats` times."""
    times: list[float] = []
    while not times or (len(times) < repeats and sum(times) < _SECONDS):
        start = time.perf_counter()
        call()
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return median(times)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fit_steps(hours: float, spent: float, speed: Speed, work: Work, jobs: int) -> tuple[dict[str, Length], float]:
    """Return the length of each stage so that the pipeline ends within its budget, and its seconds.

    Each stage gets its share of `SHARES` of the time that is left; its steps are at least `FEWEST` and at most
    `work.most`.

    Args:
        hours: the budget; a reserve of 15 % is kept.
        spent: seconds of it that have passed.
        jobs: number of runs at a time.

    Raises:
        InputError: the budget is too short for the fewest steps.
    """
    limit = _OF_BUDGET * 3600 * hours - spent

    def plan(total: float) -> dict[str, Length]:
        steps = {stage: int(total * share / speed.steps[stage]) for stage, share in SHARES.items()}
        steps = {stage: max(FEWEST[stage], min(count, work.most[stage])) for stage, count in steps.items()}
        return {
            stage: _whole_epochs(
                count, int(_VALIDATION * count * speed.steps[stage] / max(work.validation[stage], 1e-9))
            )
            for stage, count in steps.items()
        }

    least = _wall(plan(0), speed, work, jobs)
    if least > limit:
        needed = (least + spent) / 3600 / _OF_BUDGET
        raise InputError(
            f"hours is {hours:g}, but start-up, evaluation, prediction and the fewest steps take about {needed:.2g} "
            f"hours on this machine; give at least --hours {_rounded_up(needed)}"
        )
    low, high = 0.0, 100 * limit
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if _wall(plan(middle), speed, work, jobs) <= limit else (low, middle)
    found = plan(low)
    return found, _wall(found, speed, work, jobs)


def given_steps(steps: int) -> dict[str, Length]:
    """Length of each stage if the steps of the fine-tuning are given; the others in proportion."""
    counts = {stage: max(1, round(steps * part)) for stage, part in _STEPS.items()}
    return {stage: _whole_epochs(count, _VALIDATIONS) for stage, count in counts.items()}


def _whole_epochs(steps: int, validations: int) -> Length:
    """Divide steps, rounded up, into epochs, at most `validations` of which are validated."""
    epochs = max(1, min(_EPOCHS, steps // _STEPS_OF_AN_EPOCH))
    return Length(-(-steps // epochs) * epochs, epochs, -(-epochs // max(1, min(epochs, validations))))


def _wall(plan: Mapping[str, Length], speed: Speed, work: Work, jobs: int) -> float:
    """Seconds of a pipeline whose runs start as soon as those that they need are done and one of `jobs` is free."""
    times = {
        stage: START_UP
        + work.reading[stage]
        + length.steps * speed.steps[stage]
        + length.validations * work.validation[stage]
        for stage, length in plan.items()
    }
    needs: dict[str, tuple[str, ...]] = dict.fromkeys((*TEACHERS, "pixel_expert"), ())
    needs |= {"image_expert": ("image_teacher",), "patch_expert": ("patch_teacher",), "fine_tuning": EXPERTS}
    later = {"evaluation": work.evaluation, "prediction": work.prediction}
    for name, seconds in later.items():
        if seconds:
            times[name], needs[name] = START_UP + seconds, ("fine_tuning",)
    if work.compare:
        times["samed"], needs["samed"] = times["fine_tuning"], ()
        times["samed_evaluation"], needs["samed_evaluation"] = START_UP + work.evaluation, ("samed",)
    ends: dict[str, float] = {}
    running: dict[str, float] = {}
    now, waiting = 0.0, [stage for stage in (*TRAININGS, *times) if stage in times]
    waiting = list(dict.fromkeys(waiting))
    while waiting or running:
        for stage in list(waiting):
            if len(running) < jobs and all(need in ends for need in needs[stage]):
                running[stage] = now + times[stage]
                waiting.remove(stage)
        first = min(running, key=running.__getitem__)
        now = ends[first] = running.pop(first)
    return now


def _rounded_up(hours: float) -> str:
    return f"{-(-hours * 20 // 1) / 20:g}"
