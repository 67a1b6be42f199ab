"""Load the weights that a run starts from: SAM or SAM 2, SAMed, H-SAM and experts, a trained model, or a teacher.

Random weights must be asked for. Every load is logged on rank 0. A file that may be left out can be None, `""`,
`"none"` or `"null"`, in any case. A file that is missing or does not fit raises a `MissingFileError` or `InputError`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import ignite.distributed as idist

from samora_monai.checkpoints import (
    LoadReport,
    load_expert,
    load_hsam,
    load_model,
    load_sam,
    load_samed,
    read_expert_settings,
)
from samora_monai.checkpoints.files import copy_strictly, read_state
from samora_monai.checkpoints.sam import preset_name
from samora_monai.data import ScanScaling
from samora_monai.download import CHECKPOINTS, STAND_IN
from samora_monai.errors import InputError, MissingFileError
from samora_monai.networks import LEVELS, Segmenter
from samora_monai.pretraining import DenoisingStudent, read_teacher
from samora_monai.pretraining.teacher import Teacher
from samora_monai.settings import file_or_none

logger = logging.getLogger(__name__)

GET_SAM = "SAM's vit_b with 'python -m monai.bundle download_large_files --bundle_path .'"
HOW_TO_TRAIN = "train it with 'python -m monai.bundle run training --config_file configs/train.yaml --dataset_dir DIR'"
FROM_SCRATCH = ", or train from scratch with --sam_checkpoint none --trainable all"


def load_base(net: Segmenter, sam: str | None) -> LoadReport:
    """Load the SAM base that an expert is trained on; it must be given."""
    if (sam := file_or_none(sam)) is None:
        raise MissingFileError(f"an expert is made for one base, and none was given; {how_to_get_sam(net)}")
    return _load_sam(net, sam)


def load_teacher(net: Teacher, teacher: str | None) -> LoadReport:
    """Load a trained teacher, see `samora_monai.pretraining.read_teacher`."""
    return _logged(read_teacher(net, teacher))


def start_teacher(net: Teacher, checkpoint: str | None) -> LoadReport | None:
    """Load the weights that a teacher's own pretraining continues; without a file they are random."""
    return None if (checkpoint := file_or_none(checkpoint)) is None else _logged(net.load_weights(checkpoint))


def load_pretrained(
    net: Segmenter,
    sam: str | None,
    samed: str | None = None,
    experts: Mapping[str, str | None] | None = None,
    hsam: str | None = None,
    model: str | None = None,
    scaling: ScanScaling | None = None,
) -> list[LoadReport]:
    """Load the SAM base and the weights that belong on top of it.

    Warns of experts that were trained on MR of another `intensity`.

    Args:
        sam: Meta's checkpoint; without it the base is random.
        samed, hsam: a LoRA file of SAMed, or of H-SAM for the hierarchical decoder.
        experts: expert file by level.
        model: a trained model to continue, which holds all weights; the other files are then ignored.
        scaling: how this run scales scans.

    Raises:
        InputError: the network has an expert of an unknown level, or one of a level without a file; a file is given for
            an expert or a decoder that the network does not have.
    """
    if model is not None:
        return [_logged(load_model(net, model))]
    sam, samed, hsam = (file_or_none(file) for file in (sam, samed, hsam))
    given = {level: file for level, path in (experts or {}).items() if (file := file_or_none(path)) is not None}
    if not isinstance(net, Segmenter):  # a network of another kind, named by an overlay
        if files := [file for file in (sam, samed, hsam, *given.values()) if file is not None]:
            raise InputError(f"{files[0]} was given, but the network is a {type(net).__name__}; leave it out, or none")
        return []
    wanted, fused = net.image_encoder.experts, net.image_encoder.fusion is not None
    known = LEVELS if fused else (*LEVELS, "task")
    if unknown := [name for name in wanted if name not in known]:
        raise InputError(
            f"--experts has {unknown[0]!r}, which is no level{' that can be fused' if fused else ''}; "
            f"choose among {', '.join(known)}"
        )
    if hsam is not None and (decoder := net.decoder) != "hierarchical":
        raise InputError(f"--hsam_checkpoint {hsam} was given but --decoder is {decoder}; add --decoder hierarchical")
    if missing := [level for level in wanted if level in LEVELS and level not in given]:
        raise InputError(
            f"the network has the experts {wanted} but {missing[0]!r} has no file; give --{missing[0]}_expert FILE, "
            "or name fewer levels in --experts"
        )
    for level, path in given.items():
        if level not in wanted:
            raise InputError(f"--{level}_expert {path} was given but --experts is {wanted}; add {level!r} to it")
    reports = [] if sam is None else [_load_sam(net, sam, FROM_SCRATCH)]
    reports += [_logged(load(net, file)) for load, file in ((load_samed, samed), (load_hsam, hsam)) if file is not None]
    reports += [_logged(load_expert(net, path, level)) for level, path in given.items()]
    if scaling is not None and idist.get_rank() == 0:
        for warning in filter(None, (_of_other_intensity(path, level, scaling) for level, path in given.items())):
            logger.warning(warning)
    return reports


def _of_other_intensity(path: str, level: str, scaling: ScanScaling) -> str | None:
    made = read_expert_settings(path, level).scaling
    if (made.modality, scaling.modality) != ("MR", "MR") or made.intensity == scaling.intensity:
        return None
    return (
        f"the {level} expert '{path}' was trained on MR under --intensity {made.intensity} but this run has "
        f"{scaling.intensity}, so that it gets other grey values than it has learned; give --intensity "
        f"{made.intensity}, or train it again"
    )


def load_trained_expert(segmenter: Segmenter, sam: str | None, expert: str, level: str) -> LoadReport:
    """Load the SAM base and the expert of `level` that was trained on it.

    A missing expert is reported first: without it the network has the default settings, which the base may not fit.
    """
    if not Path(expert).is_file():
        raise MissingFileError(f"no {level} expert '{expert}'; {HOW_TO_TRAIN}, or name one with --expert FILE")
    load_base(segmenter, sam)
    return _logged(load_expert(segmenter, expert, level))


def load_decoder(student: DenoisingStudent, decoder: str) -> LoadReport:
    """Load the decoder that was trained with the pixel expert."""
    try:
        state, name = read_state(decoder)
    except MissingFileError as e:
        raise MissingFileError(
            f"no decoder '{decoder}', which comes with the pixel expert; {HOW_TO_TRAIN}, or name it with --decoder"
        ) from e
    keys, remedy = list(student.decoder.state_dict()), "give the decoder.pt that was written with the expert"
    return _logged(LoadReport(name, copied=copy_strictly(student.decoder, state, keys, name, remedy)))


def how_to_get_sam(net: Segmenter) -> str:
    """How a user gets the checkpoint of the network's encoder, as part of an error message."""
    preset = preset_name(net)
    if preset in CHECKPOINTS:
        one = f"python -m samora_monai.download {preset}"
        return f"download {CHECKPOINTS[preset].file} with '{one}' ({GET_SAM}) or give --sam_checkpoint FILE"
    shipped = f", get the shipped one with 'python -m samora_monai.download {STAND_IN}'" if preset == STAND_IN else ""
    return f"give --sam_checkpoint FILE of this encoder ({preset}){shipped}, or take another encoder and get {GET_SAM}"


def _load_sam(net: Segmenter, sam: str, otherwise: str = "") -> LoadReport:
    try:
        return _logged(load_sam(net, sam))
    except MissingFileError as e:
        raise MissingFileError(f"no SAM checkpoint {str(sam)!r}; {how_to_get_sam(net)}{otherwise}") from e


def _logged(report: LoadReport) -> LoadReport:
    if idist.get_rank() == 0:
        logger.info(f"loaded {report}")
    return report
