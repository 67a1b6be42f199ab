"""A stand-in for torchvision, which MONAI Label imports for a click tool that no bundle uses.

torchvision must match torch to the build, CPU or CUDA version, and package indexes do not offer every pair.
"""

__version__ = "0"
