"""Models: `models/model.pt`, the state dict of a whole network, and the settings beside it, `models/model.json`.

The settings describe the network, the scaling of scans and the classes. Evaluation, inference, MONAI Label and export
read them, so that no setting has to be given again.

Format 2 holds the fields of `SegmenterConfig` (without `num_classes`), those of `ScanScaling` and `Postprocessing`,
`class_names` and `format_version`. Format 1, of the first release, has no version, and has `fusion_start`, which
matters only when a training starts. A missing field takes its default, the behaviour from before the field existed.
"""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import monai.bundle

from samora_monai.checkpoints.files import LoadReport, Source, check_checksums, copy_strictly, read_state
from samora_monai.data.postprocessing import Postprocessing
from samora_monai.data.scaling import ScanScaling
from samora_monai.errors import InputError, MissingFileError
from samora_monai.networks.config import SegmenterConfig
from samora_monai.networks.segmenter import Segmenter
from samora_monai.replacing import replacing

FORMAT_VERSION = 2
_SYNAPSE = (  # of SAMed and H-SAM
    "background", "spleen", "right kidney", "left kidney", "gallbladder", "liver", "stomach", "aorta", "pancreas",
)  # fmt: skip


@dataclass(frozen=True)
class ModelSettings:
    """The settings of a model.

    Args:
        network: description of the network; its number of classes is that of `class_names`.
        scaling: scaling of grey values, and direction of the slices.
        class_names: in the order of the label values, background first.
        postprocessing: what is done with the predictions of the slices.
    """

    network: SegmenterConfig = field(default_factory=lambda: SegmenterConfig(num_classes=len(_SYNAPSE)))
    scaling: ScanScaling = field(default_factory=ScanScaling)
    class_names: tuple[str, ...] = _SYNAPSE
    postprocessing: Postprocessing = field(default_factory=Postprocessing)

    def __post_init__(self) -> None:
        assert self.network.num_classes == len(self.class_names)
        classes = self.postprocessing.largest_component
        if classes and classes[-1] >= len(self.class_names):
            raise InputError(
                f"largest_component names class {classes[-1]}, but the model has the classes 1 to "
                f"{len(self.class_names) - 1}; correct it"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelSettings:
        """Make settings from their flat form, or raise an `InputError`; missing fields take their defaults."""
        known = cls().as_dict()
        if unknown := [name for name in values if name not in known]:
            raise InputError(f"unknown setting {unknown[0]!r} of a model; expected one of {', '.join(known)}")
        class_names = values.get("class_names", _SYNAPSE)
        if not isinstance(class_names, list | tuple) or not all(isinstance(name, str) for name in class_names):
            raise InputError(f"class_names is {class_names!r} but must be a list of names, background first")
        network = SegmenterConfig(num_classes=len(class_names), **fields_of(SegmenterConfig, values))
        scaling = ScanScaling(**fields_of(ScanScaling, values))
        postprocessing = Postprocessing(**fields_of(Postprocessing, values))
        return cls(network, scaling, tuple(class_names), postprocessing)

    def as_dict(self) -> dict[str, Any]:
        """The flat form, with lists for tuples, as in JSON."""
        values = asdict(self.network) | asdict(self.scaling) | asdict(self.postprocessing)
        values["class_names"] = self.class_names
        del values["num_classes"]  # that of `class_names`
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def changed(self, **changes: Any) -> ModelSettings:
        """Settings with other values for some fields; None leaves a field as it is."""
        given = {name: value for name, value in changes.items() if value is not None}
        return self.from_dict(self.as_dict() | given) if given else self


def read_model_settings(checkpoint: str | os.PathLike[str], **changes: Any) -> ModelSettings:
    """Read the settings of the model file `checkpoint` from the JSON file of the same name.

    If neither file exists, as before the first training, return the default settings. `changes` are other values for
    some fields, e.g. `stage=2`; None keeps the model's.
    """
    path = Path(checkpoint).with_suffix(".json")
    if path.is_file():
        return _parse(path).changed(**changes)
    if Path(checkpoint).is_file():
        raise MissingFileError(
            f"no model settings {str(path)!r}, which '{checkpoint}' needs; training wrote both files, copy both"
        )
    return ModelSettings().changed(**changes)


def fields_of(settings: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `values` that are fields of the dataclass `settings`."""
    return {field.name: values[field.name] for field in fields(settings) if field.name in values}


def read_json(path: Path) -> dict[str, Any]:
    """Read the JSON object in a settings file, or raise an `InputError` if it is damaged."""
    try:
        values = json.loads(path.read_text())
        if not isinstance(values, dict):
            raise ValueError(f"expected an object, got {type(values).__name__}")
    except ValueError as e:  # of JSON and of UTF-8 too
        raise InputError(f"settings file {str(path)!r} is damaged ({e}); restore it or train again") from e
    return values


def _parse(path: Path) -> ModelSettings:
    values, file = read_json(path), f"settings file {str(path)!r}"
    version = values.pop("format_version", 1)
    if version not in (1, FORMAT_VERSION):
        raise InputError(f"{file} has format {version!r}, expected {FORMAT_VERSION}; update samora_monai")
    if version == 1:
        values.pop("fusion_start", None)  # not part of a trained model
    if "class_names" not in values:
        raise InputError(f"{file} lacks 'class_names'; restore it or train again")
    try:
        return ModelSettings.from_dict(values)
    except InputError as e:
        raise InputError(f"{file}: {e}") from e


def write_model_settings(checkpoint: str | os.PathLike[str], settings: ModelSettings) -> None:
    """Write `settings` beside the model file `checkpoint`, atomically."""
    with replacing(Path(checkpoint).with_suffix(".json")) as unfinished:
        content = {"format_version": FORMAT_VERSION, **settings.as_dict()}
        unfinished.write_text(json.dumps(content, indent=1) + "\n")


def load_model(net: Segmenter, source: Source) -> LoadReport:
    """Load a bundle's `model.pt`, or the `"model"` entry of a training checkpoint, strictly."""
    try:
        state, name = read_state(source)
    except MissingFileError as e:
        raise MissingFileError(f"no model {str(source)!r}; train one first, or name one with --checkpoint") from e
    remedy = f"it was trained with other settings than this network ({net.describe()}); give it the same ones"
    return LoadReport(name, copied=copy_strictly(net, state, list(net.state_dict()), name, remedy))


def load_for_inference(net: Segmenter, source: Source) -> LoadReport:
    """Load a model as `load_model`, and merge experts that are not fused into the base: the same function, faster.

    The parameters of `net` are no longer those of the file, so that it cannot be saved as a model or trained further.
    """
    report = load_model(net, source)
    if isinstance(net, Segmenter) and net.image_encoder.fusion is None:  # not a network that an overlay names
        net.image_encoder.merge_experts()
    return report


def model_in_use(checkpoint: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """The model file whose network is being built: `checkpoint`, or the file that `monai.bundle.load` is loading.

    `monai.bundle.load` of MONAI 1.6 builds the network from the config with `bundle_root` at ".", so that the settings
    would be those of a model in the current folder. It passes the path of its file to nothing that a config can reach,
    so that the path is read from its frame. It does not compare the file with its checksums; this function does.
    """
    frame = inspect.currentframe()
    while frame is not None and frame.f_code is not monai.bundle.load.__code__:
        frame = frame.f_back
    if frame is None:
        return checkpoint
    check_checksums(frame.f_locals["full_path"])
    return frame.f_locals["full_path"]
