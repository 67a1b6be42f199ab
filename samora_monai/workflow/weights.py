"""Load the weights that a run starts from: SAM, SAMed, H-SAM and experts, a trained model, or a teacher.

Random weights must be asked for. Every load is logged once, by the first process. A file that may be left out can be
None, `""`, `"none"` or `"null"`, in any case.
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
from samora_monai.pretraining import DenoisingStudent, read_teacher
from samora_monai.pretraining.teacher import Teacher
from samora_monai.settings import file_or_none

logger = logging.getLogger(__name__)

HOW_TO_GET_SAM = (
    "download it with 'python -m monai.bundle download_large_files --bundle_path .' or give another with "
    "--sam_checkpoint FILE"
)
HOW_TO_TRAIN = "train it with 'python -m monai.bundle run training --config_file configs/train.yaml --dataset_dir DIR'"
FROM_SCRATCH = ", or train from scratch with --sam_checkpoint none --trainable all"


def load_base(net: Segmenter, sam: str | None) -> LoadReport:
    """Load the SAM base that an expert is trained on.

    Raises:
        MissingFileError, InputError: no file is given or found; it does not fit.
    """
    if (sam := file_or_none(sam)) is None:
        raise MissingFileError(f"an expert is made for one base, and none was given; {HOW_TO_GET_SAM}")
    return _logged(_load_sam(net, sam, HOW_TO_GET_SAM))


def load_teacher(net: Teacher, teacher: str | None) -> LoadReport:
    """Load a trained teacher, see `samora_monai.pretraining.read_teacher`."""
    return _logged(read_teacher(net, teacher))


def start_teacher(net: Teacher, checkpoint: str | None) -> LoadReport | None:
    """Load the weights that a teacher's own pretraining continues; without a file they are random.

    Raises:
        MissingFileError, InputError: no such file; it does not fit.
    """
    return None if (checkpoint := file_or_none(checkpoint)) is None else _logged(net.load_weights(checkpoint))


def load_pretrained(
    net: Segmenter,
    sam: str | None,
    samed: str | None = None,
    experts: Mapping[str, str | None] | None = None,
    hsam: str | None = None,
    model: str | None = None,
) -> list[LoadReport]:
    """Load the SAM base and the weights that belong on top of it.

    Args:
        sam: Meta's checkpoint; without it the base is random.
        samed: a LoRA file of SAMed.
        experts: expert file by level.
        hsam: a LoRA file of H-SAM, for the hierarchical decoder.
        model: a trained model to continue, which holds all weights; the other files are then ignored.

    Raises:
        MissingFileError, InputError: a file is missing or does not fit; the network has an expert of an unknown level,
            or one of a level without a file; a file is given for an expert or a decoder that the network does not have.
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
    if hsam is not None and net.decoder != "hierarchical":
        raise InputError(
            f"--hsam_checkpoint {hsam} was given but --decoder is {net.decoder}; add --decoder hierarchical"
        )
    reports = []
    if sam is not None:
        reports.append(_load_sam(net, sam, HOW_TO_GET_SAM + FROM_SCRATCH))
    if samed is not None:
        reports.append(load_samed(net, samed))
    if hsam is not None:
        reports.append(load_hsam(net, hsam))
    if missing := [level for level in wanted if level in LEVELS and level not in given]:
        raise InputError(
            f"the network has the experts {wanted} but {missing[0]!r} has no file; give --{missing[0]}_expert FILE, "
            "or name fewer levels in --experts"
        )
    for level, path in given.items():
        if level not in wanted:
            raise InputError(f"--{level}_expert {path} was given but --experts is {wanted}; add {level!r} to it")
        reports.append(load_expert(net, path, level))
    return [_logged(report) for report in reports]


def load_trained_expert(segmenter: Segmenter, sam: str | None, expert: str, level: str) -> LoadReport:
    """Load the SAM base and the expert that was trained on it.

    A missing expert is reported first: without it the network has the default settings, which the base may not fit.

    Raises:
        MissingFileError, InputError: no such files; an expert of another level, rank, preset or base.
    """
    if not Path(expert).is_file():
        raise MissingFileError(f"no {level} expert '{expert}'; {HOW_TO_TRAIN}, or name one with --expert FILE")
    load_base(segmenter, sam)
    return _logged(load_expert(segmenter, expert, level))


def load_decoder(student: DenoisingStudent, decoder: str) -> LoadReport:
    """Load the decoder that was trained with the pixel expert.

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
    return _logged(LoadReport(name, copied=copy_strictly(own, state, list(own.state_dict()), name, remedy)))


def _load_sam(net: Segmenter, sam: str, remedy: str) -> LoadReport:
    try:
        return load_sam(net, sam)
    except MissingFileError as e:
        raise MissingFileError(f"no SAM checkpoint {str(sam)!r}; {remedy}") from e


def _logged(report: LoadReport) -> LoadReport:
    if idist.get_rank() == 0:
        logger.info(f"loaded {report}")
    return report
