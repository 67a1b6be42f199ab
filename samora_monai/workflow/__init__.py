"""What a bundle run needs around its engines: start-up checks, cases, weights, summary, processes."""

from samora_monai.settings import check_run_settings
from samora_monai.workflow.cases import model_to_train, resolve_cases
from samora_monai.workflow.pretraining import PretrainingEvaluator, check_not_given, prepare_pretraining
from samora_monai.workflow.processes import leave_process_group, own_device, own_share, shared_sampler, wrap
from samora_monai.workflow.startup import start
from samora_monai.workflow.summary import print_pretraining_summary, print_summary
from samora_monai.workflow.weights import (
    load_base,
    load_decoder,
    load_pretrained,
    load_teacher,
    load_trained_expert,
    start_teacher,
)

__all__ = [
    "PretrainingEvaluator",
    "check_not_given",
    "check_run_settings",
    "leave_process_group",
    "load_base",
    "load_decoder",
    "load_pretrained",
    "load_teacher",
    "load_trained_expert",
    "model_to_train",
    "own_device",
    "own_share",
    "prepare_pretraining",
    "print_pretraining_summary",
    "print_summary",
    "resolve_cases",
    "shared_sampler",
    "start",
    "start_teacher",
    "wrap",
]
