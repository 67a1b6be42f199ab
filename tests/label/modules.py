"""The server's modules that need no MONAI Label, for tests without it."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

from tests.label.server import ROOT


def label_module(name: str, *needs: str) -> ModuleType:
    """Import a module of `label/modules`, after those that it needs, without the folder on the path.

    On the path, its stand-in for torchvision could be imported by other tests.
    """
    for need in needs:
        label_module(need)
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, ROOT / "label" / "modules" / f"{name}.py")
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]
