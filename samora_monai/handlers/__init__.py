"""Ignite handlers: progress, validation, checkpoints, NaN guard, TensorBoard."""

from samora_monai.handlers.checkpoint import BestCheckpoint, BestMetric, LastCheckpoint, TrainableState
from samora_monai.handlers.epoch_seed import EpochSeed
from samora_monai.handlers.expert_checkpoint import ExpertCheckpoint, TeacherCheckpoint
from samora_monai.handlers.nan_guard import NanGuard
from samora_monai.handlers.progress import Progress, ValidationLog
from samora_monai.handlers.tensorboard import OverlayToTensorBoard, TensorBoard
from samora_monai.handlers.training import TrainingHandlers
from samora_monai.handlers.validation import EpochValidation

__all__ = [
    "BestCheckpoint",
    "BestMetric",
    "EpochSeed",
    "EpochValidation",
    "ExpertCheckpoint",
    "LastCheckpoint",
    "NanGuard",
    "OverlayToTensorBoard",
    "Progress",
    "TeacherCheckpoint",
    "TensorBoard",
    "TrainableState",
    "TrainingHandlers",
    "ValidationLog",
]
