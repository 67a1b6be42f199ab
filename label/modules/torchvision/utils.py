"""The two names that MONAI Label's `transform.post` imports."""

from __future__ import annotations

from typing import Any, NoReturn


def make_grid(*args: Any, **kwargs: Any) -> NoReturn:
    """Raise `NotImplementedError`."""
    raise NotImplementedError("torchvision is not installed beside this server")


save_image = make_grid
