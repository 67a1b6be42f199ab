"""The plan of a pipeline: every setting of its runs, decided from the scans and this machine."""

from samora_monai.pipeline.planning.make import make_plan
from samora_monai.pipeline.planning.plan_file import read_plan, write_plan

__all__ = ["make_plan", "read_plan", "write_plan"]
