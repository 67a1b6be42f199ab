"""Checks of the settings on the command line: `--epoch 1` for `--epochs 1`.

`python -m monai.bundle run` accepts any `--id value` and adds an unknown one to the config, where nothing reads it.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import logging
import os
import sys
from collections.abc import Collection, Sequence
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from pydoc import locate
from typing import Any

from monai.bundle import ComponentLocator, ConfigComponent, ConfigParser, ConfigWorkflow, create_workflow, run
from monai.bundle.reference_resolver import ReferenceResolver
from monai.bundle.utils import DEFAULT_EXP_MGMT_SETTINGS
from monai.utils import ensure_tuple

from samora_monai.checkpoints.model_settings import ModelSettings
from samora_monai.errors import InputError

logger = logging.getLogger(__name__)

SEPARATOR = ReferenceResolver.sep
# the settings of `monai.bundle run` itself
RUN_ARGUMENTS = {name for call in (run, create_workflow, ConfigWorkflow) for name in inspect.signature(call).parameters}
ROOTS = {"run_id": "run", "init_id": "initialize", "final_id": "finalize"}  # the ids that it evaluates


def check_overrides() -> None:
    """Check the settings of `python -m monai.bundle run ...` against its config files; log those without effect.

    Raises:
        InputError: a setting is neither an id of the config nor an argument of a component (names the nearest known
            one), or its value has the wrong type.
    """
    if Path(sys.argv[0]).parts[-3:] != ("monai", "bundle", "__main__.py") or sys.argv[1:2] != ["run"]:
        return
    given = given_settings(sys.argv[2:])
    if given.get("args_file") is not None:
        given = {**ConfigParser.load_config_file(given["args_file"]), **given}
    if given.get("config_file") is None:
        return
    files = ", ".join(map(str, ensure_tuple(given["config_file"])))
    tracking = _tracking_settings(given.get("tracking"))
    config = ConfigParser(ConfigParser.load_config_files(given["config_file"]) | tracking)
    settings = {ReferenceResolver.normalize_id(key): given[key] for key in given if key not in RUN_ARGUMENTS}
    for name, value in settings.items():
        _check_id(name, config, files)
        _check_value(name, value, config.get(name))
    ids = [given.get(key, default) for key, default in ROOTS.items()]
    # a bundle's commands always name bundle_root; MONAI's tracking refers to its own settings
    silent = {"bundle_root", ConfigParser.meta_key, *tracking}
    settings = {name: value for name, value in settings.items() if name.split(SEPARATOR)[0] not in silent}
    if os.environ.get("RANK", "0") == "0":
        for name in settings_without_effect(config, settings, ids):
            logger.warning(f"--{name} has no effect in '{ids[0]}'{_of_the_model(name, config)}")


def given_settings(arguments: Sequence[str]) -> dict[str, Any]:
    """Read the arguments of `monai.bundle run` with fire, as MONAI does."""
    import fire  # 0.1 s that only a bundle's command needs

    given: dict[str, Any] = {}

    @functools.wraps(run)  # so that fire sees the same parameters
    def record(*args: Any, **kwargs: Any) -> None:
        bound = inspect.signature(run).bind(*args, **kwargs).arguments
        given.update(bound.pop("override", {}))
        given.update({name: value for name, value in bound.items() if value is not None})

    own = fire.parser.SeparateFlagArgs(list(arguments))[0]  # without what follows `--`, e.g. `-- --trace`
    fire.Fire(record, command=own, serialize=lambda _: None)
    return given


def settings_without_effect(config: ConfigParser, settings: dict[str, Any], ids: Collection[str]) -> list[str]:
    """Return the overrides `settings` of `config` that no chain of references from `ids` leads to."""
    parser = ConfigParser(deepcopy(config.get()))
    parser.update(settings)
    macros = [value[1:] for id in _ids(parser.config) if (value := str(parser[id])).startswith("%")]
    parser.resolve_macro_and_relative_ids()
    reached, waiting = set(), [*ids, *map(ReferenceResolver.normalize_id, macros)]
    while waiting:
        id = waiting.pop()
        if id in parser and id not in reached:
            reached.add(id)
            waiting += ReferenceResolver.find_refs_in_config(parser[id], id)
    return [name for name in settings if not any(_contains(name, id) or _contains(id, name) for id in reached)]


def _contains(outer: str, inner: str) -> bool:
    return f"{inner}{SEPARATOR}".startswith(f"{outer}{SEPARATOR}")


def _tracking_settings(tracking: Any) -> dict[str, Any]:
    # the top-level ids that `--tracking` adds to the config, all open to overrides
    if tracking is None:
        return {}
    settings: Any = DEFAULT_EXP_MGMT_SETTINGS.get(str(tracking))
    if settings is None:
        settings = ConfigParser.load_config_files(tracking)
    else:
        require_mlflow()
    return settings["configs"]


def require_mlflow() -> None:
    """Check that MLflow is installed; an `InputError` names the package to install."""
    if find_spec("mlflow") is None:
        raise InputError("'--tracking mlflow' needs MLflow, which is not installed; pip install 'samora_monai[track]'")


def _check_id(name: str, config: ConfigParser, where: str) -> None:
    parent = name  # or else the nearest id above it that exists; "" is the whole config
    while parent not in config:
        parent = parent.rpartition(SEPARATOR)[0]
    node = config[parent]
    if parent == name or name.startswith(ConfigParser.meta_key):
        return
    if not isinstance(node, dict | list):
        raise InputError(f"setting '{name}' does not exist in {where}: '{parent}' is the value {node!r}, override that")
    argument = name.removeprefix(f"{parent}{SEPARATOR}")
    if parent and isinstance(node, dict) and SEPARATOR not in argument:
        return _check_argument(name, argument, node)
    remedy = _of_the_model(name, config) or _did_you_mean(name, _ids(config.get()))
    raise InputError(f"unknown setting '{name}' in {where}{remedy}")


def _check_argument(name: str, argument: str, component: dict[str, Any]) -> None:
    # an argument that the config leaves out must be one of the component's
    if not ConfigComponent.is_instantiable(component):
        return
    target = ConfigComponent(component, locator=ComponentLocator()).resolve_module_name()
    call: Any = locate(target) if isinstance(target, str) else target
    try:
        parameters = inspect.signature(call).parameters
    except (TypeError, ValueError):  # an expression, or a class without a signature
        return
    known = [*parameters, *ConfigComponent.non_arg_keys]
    if argument not in known and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        hint = _did_you_mean(argument, known, otherwise=f"it takes {', '.join(parameters)}")
        raise InputError(f"unknown setting '{name}': {call.__name__} has no argument '{argument}'{hint}")


def _check_value(name: str, value: Any, default: Any) -> None:
    # fire reads Python's literals; it takes YAML's for text, which is true in any condition
    python = {"true": "True", "false": "False", "null": "None"}
    text = str(value)
    if text in python and (SEPARATOR in name or text == "null"):
        raise InputError(f"'--{name} {text}' would be read as the text '{text}'; write --{name} {python[text]}")
    numeric = isinstance(default, int | float) and not isinstance(default, bool)
    if numeric and isinstance(value, str) and not value.startswith(("$", "@", "%")):
        raise InputError(f"'--{name}' must be a number, got {value!r}; the config has {default}")


def _of_the_model(name: str, config: ConfigParser) -> str:
    # the remedy where a field of the model is given while the config reads the model from its file, else ""
    model = config.get("model")
    reads = isinstance(model, dict) and str(model.get("_target_")).endswith(".read_model_settings")
    of_the_model = reads and name in ModelSettings().as_dict()
    return f"; it belongs to the trained model, override it with --model::{name} VALUE" if of_the_model else ""


def _did_you_mean(name: str, known: Sequence[str], otherwise: str = "see the top of that file for the settings") -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean '{near[0]}'?" if near else f"; {otherwise}"


def _ids(node: Any, prefix: str = "") -> list[str]:
    # every id of a config: "train", "train::trainer", ...
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    ids = []
    for key, value in items:
        ids += [f"{prefix}{key}", *_ids(value, f"{prefix}{key}{SEPARATOR}")]
    return ids
