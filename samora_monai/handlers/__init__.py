"""Ignite handlers: progress, validation, checkpoints, NaN guard, TensorBoard."""

from samora_monai.handlers.best_checkpoint import BestCheckpoint, ExpertCheckpoint, TeacherCheckpoint
from samora_monai.handlers.constant_target import ConstantTarget
from samora_monai.handlers.last_checkpoint import LastCheckpoint
from samora_monai.handlers.progress import ValidationLog
from samora_monai.handlers.tensorboard import OverlayToTensorBoard, TensorBoard
from samora_monai.handlers.training import TrainingHandlers
from samora_monai.handlers.weight_average import WeightAverage

__all__ = [
    "BestCheckpoint",
    "ConstantTarget",
    "ExpertCheckpoint",
    "LastCheckpoint",
    "OverlayToTensorBoard",
    "TeacherCheckpoint",
    "TensorBoard",
    "TrainingHandlers",
    "ValidationLog",
    "WeightAverage",
]
