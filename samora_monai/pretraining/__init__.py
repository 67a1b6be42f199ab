"""Stage 1, on scans without labels: teachers, and the students that train an expert by distillation or denoising."""

from samora_monai.pretraining.denoising import DenoisingLoss, DenoisingStudent
from samora_monai.pretraining.distillation import DistillationStudent, EncoderFeatures, TeacherTarget
from samora_monai.pretraining.losses import MaskedReconstructionLoss, NTXentLoss, nt_xent
from samora_monai.pretraining.mae import MAETeacher, MaskedPretraining, load_mae
from samora_monai.pretraining.simclr import ContrastivePretraining, SimCLRTeacher, load_simclr
from samora_monai.pretraining.teacher import read_teacher, save_teacher
from samora_monai.pretraining.views import TwoViewsd

__all__ = [
    "ContrastivePretraining",
    "DenoisingLoss",
    "DenoisingStudent",
    "DistillationStudent",
    "EncoderFeatures",
    "MAETeacher",
    "MaskedPretraining",
    "MaskedReconstructionLoss",
    "NTXentLoss",
    "SimCLRTeacher",
    "TeacherTarget",
    "TwoViewsd",
    "load_mae",
    "load_simclr",
    "nt_xent",
    "read_teacher",
    "save_teacher",
]
