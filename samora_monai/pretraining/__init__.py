"""Stage 1, on scans without labels: teachers, and the students that train an expert by distillation or denoising."""

from samora_monai.pretraining.anchor import AnchoredLoss, AnchoredStudent, anchored, anchored_loss
from samora_monai.pretraining.denoising import DenoisingLoss, DenoisingStudent
from samora_monai.pretraining.distillation import (
    DistillationLoss,
    DistillationStudent,
    EncoderFeatures,
    TeacherTarget,
    measure_targets,
)
from samora_monai.pretraining.losses import MaskedReconstructionLoss, NTXentLoss, nt_xent
from samora_monai.pretraining.mae import MAETeacher, MaskedPretraining, load_mae
from samora_monai.pretraining.simclr import ContrastivePretraining, SimCLRTeacher, load_simclr
from samora_monai.pretraining.target_statistics import TargetStatistics
from samora_monai.pretraining.teacher import read_teacher, save_teacher
from samora_monai.pretraining.views import TwoViewsd

__all__ = [
    "AnchoredLoss",
    "AnchoredStudent",
    "ContrastivePretraining",
    "DenoisingLoss",
    "DenoisingStudent",
    "DistillationLoss",
    "DistillationStudent",
    "EncoderFeatures",
    "MAETeacher",
    "MaskedPretraining",
    "MaskedReconstructionLoss",
    "NTXentLoss",
    "SimCLRTeacher",
    "TargetStatistics",
    "TeacherTarget",
    "TwoViewsd",
    "anchored",
    "anchored_loss",
    "load_mae",
    "load_simclr",
    "measure_targets",
    "nt_xent",
    "read_teacher",
    "save_teacher",
]
