"""What a training starts from: SAM, SAMed or H-SAM, and the experts. Nothing is random unless it was asked for."""

from __future__ import annotations

from collections.abc import Mapping

from samora_monai.checkpoints import LoadReport, load_expert, load_hsam, load_sam, load_samed
from samora_monai.engine.distributed import is_main_process
from samora_monai.errors import InputError, MissingFileError
from samora_monai.networks import LEVELS, Segmenter

HOW_TO_GET_SAM = (
    "download it with 'python -m monai.bundle download_large_files --bundle_path .', give another with "
    "--sam_checkpoint FILE, or train from scratch with --sam_checkpoint none --trainable all"
)


def load_pretrained(
    net: Segmenter,
    sam: str | None,
    samed: str | None = None,
    experts: Mapping[str, str | None] | None = None,
    hsam: str | None = None,
) -> list[LoadReport]:
    """Loads the base, then what stands on it, and prints what was done.

    Args:
        sam: Meta's checkpoint; ``None`` or ``"none"`` for random weights.
        samed: a LoRA file of SAMed.
        experts: for each level its expert file.
        hsam: a LoRA file of H-SAM, for the hierarchical decoder.

    Raises:
        MissingFileError, InputError: a file is missing or does not fit; an expert that HL-Attn fuses has no file;
            a file is given for an expert or a decoder that the network does not have.
    """
    if hsam is not None and net.decoder != "hierarchical":
        raise InputError(
            f"--hsam_checkpoint {hsam} was given but --decoder is {net.decoder}; add --decoder hierarchical"
        )
    reports = []
    if sam is not None and str(sam).lower() != "none":
        try:
            reports.append(load_sam(net, sam))
        except MissingFileError as e:
            raise MissingFileError(f"no SAM checkpoint {str(sam)!r}; {HOW_TO_GET_SAM}") from e
    if samed is not None:
        reports.append(load_samed(net, samed))
    if hsam is not None:
        reports.append(load_hsam(net, hsam))
    given = {level: path for level, path in (experts or {}).items() if path is not None}
    wanted = net.image_encoder.experts
    if net.image_encoder.fusion and (missing := [level for level in wanted if level in LEVELS and level not in given]):
        raise InputError(
            f"HL-Attn fuses the experts {wanted} but {missing[0]!r} has no file; give --{missing[0]}_expert FILE, "
            "or name fewer levels in --experts"
        )
    for level, path in given.items():
        if level not in wanted:
            raise InputError(f"--{level}_expert {path} was given but --experts is {wanted}; add {level!r} to it")
        reports.append(load_expert(net, path, level))
    if is_main_process():
        for report in reports:
            print(f"loaded {report}", flush=True)
    return reports
