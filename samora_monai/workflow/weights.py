"""What a training starts from: SAM, SAMed or H-SAM and the experts, or a trained model.

Nothing is random unless it was asked for.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import ignite.distributed as idist

from samora_monai.checkpoints import LoadReport, load_expert, load_hsam, load_model, load_sam, load_samed
from samora_monai.checkpoints.files import copy_strictly, read_state
from samora_monai.errors import InputError, MissingFileError
from samora_monai.networks import LEVELS, Segmenter
from samora_monai.pretraining import DenoisingStudent, teacher_files
from samora_monai.pretraining.teacher_files import Teacher

logger = logging.getLogger(__name__)

HOW_TO_GET_SAM = (
    "download it with 'python -m monai.bundle download_large_files --bundle_path .' or give another with "
    "--sam_checkpoint FILE"
)
HOW_TO_TRAIN = "train it with 'python -m monai.bundle run training --config_file configs/train.yaml --dataset_dir DIR'"
FROM_SCRATCH = ", or train from scratch with --sam_checkpoint none --trainable all"


def load_base(net: Segmenter, sam: str | None) -> LoadReport:
    """Loads the base that an expert is trained on, and prints what was done.

    Raises:
        MissingFileError, InputError: no file is named or there; it does not fit.
    """
    if _is_none(sam):
        raise MissingFileError(f"an expert is made for one base, and none was given; {HOW_TO_GET_SAM}")
    return _said(_load_sam(net, sam, HOW_TO_GET_SAM))


def load_teacher(net: Teacher, teacher: str | None) -> LoadReport:
    """Loads a trained teacher, and prints what was done; see `samora_monai.pretraining.load_teacher`."""
    return _said(teacher_files.load_teacher(net, teacher))


def start_teacher(net: Teacher, checkpoint: str | None) -> LoadReport | None:
    """Loads the weights that a teacher's own pretraining goes on from; `None` or `"none"` for random ones.

    Raises:
        MissingFileError, InputError: there is no such file; it does not fit.
    """
    return None if checkpoint is None or _is_none(checkpoint) else _said(net.load_weights(checkpoint))


def load_pretrained(
    net: Segmenter,
    sam: str | None,
    samed: str | None = None,
    experts: Mapping[str, str | None] | None = None,
    hsam: str | None = None,
    model: str | None = None,
) -> list[LoadReport]:
    """Loads the base, then what stands on it, and prints what was done.

    Args:
        sam: Meta's checkpoint; `None` or `"none"` for random weights.
        samed: a LoRA file of SAMed.
        experts: for each level its expert file.
        hsam: a LoRA file of H-SAM, for the hierarchical decoder.
        model: a trained model to go on with, which holds everything; then no other file is looked at.

    Raises:
        MissingFileError, InputError: a file is missing or does not fit; an expert of a level has no file; a file is
            given for an expert or a decoder that the network does not have.
    """
    if model is not None:
        return [_said(load_model(net, model))]
    if hsam is not None and net.decoder != "hierarchical":
        raise InputError(
            f"--hsam_checkpoint {hsam} was given but --decoder is {net.decoder}; add --decoder hierarchical"
        )
    reports = []
    if not _is_none(sam):
        reports.append(_load_sam(net, sam, HOW_TO_GET_SAM + FROM_SCRATCH))
    if samed is not None:
        reports.append(load_samed(net, samed))
    if hsam is not None:
        reports.append(load_hsam(net, hsam))
    given = {level: path for level, path in (experts or {}).items() if path is not None}
    wanted = net.image_encoder.experts if isinstance(net, Segmenter) else ()  # an overlay may name another network
    if missing := [level for level in wanted if level in LEVELS and level not in given]:
        raise InputError(
            f"the network has the experts {wanted} but {missing[0]!r} has no file; give --{missing[0]}_expert FILE, "
            "or name fewer levels in --experts"
        )
    for level, path in given.items():
        if level not in wanted:
            raise InputError(f"--{level}_expert {path} was given but --experts is {wanted}; add {level!r} to it")
        reports.append(load_expert(net, path, level))
    return [_said(report) for report in reports]


def load_trained_expert(segmenter: Segmenter, sam: str | None, expert: str, level: str) -> LoadReport:
    """Loads the base and the expert that was trained on it, and prints what was done.

    The expert is looked for first: without it, and the settings beside it, the base may seem not to fit either.

    Raises:
        MissingFileError, InputError: no such files; an expert of another level, rank, preset or base.
    """
    if not Path(expert).is_file():
        raise MissingFileError(f"no {level} expert '{expert}'; {HOW_TO_TRAIN}, or name one with --expert FILE")
    load_base(segmenter, sam)
    report = load_expert(segmenter, expert, level)
    logger.info(f"loaded {report}")
    return report


def load_decoder(student: DenoisingStudent, decoder: str) -> LoadReport:
    """Loads the decoder that was trained with the expert, and prints what was done.

    Raises:
        MissingFileError, InputError: no such file; it does not fit.
    """
    try:
        state, name = read_state(decoder)
    except MissingFileError as e:
        raise MissingFileError(
            f"no decoder '{decoder}', which comes with the pixel expert; {HOW_TO_TRAIN}, or name it with --decoder"
        ) from e
    remedy = "give the decoder.pt that was written with the expert"
    own = student.decoder
    report = LoadReport(name, copied=copy_strictly(own, state, list(own.state_dict()), name, remedy))
    logger.info(f"loaded {report}")
    return report


def _is_none(path: str | None) -> bool:
    return path is None or str(path).lower() == "none"


def _load_sam(net: Segmenter, sam: str | None, remedy: str) -> LoadReport:
    assert sam is not None
    try:
        return load_sam(net, sam)
    except MissingFileError as e:
        raise MissingFileError(f"no SAM checkpoint {str(sam)!r}; {remedy}") from e


def _said(report: LoadReport) -> LoadReport:
    if idist.get_rank() == 0:
        logger.info(f"loaded {report}")
    return report
