"""Settings on the command line that no config knows: `--epoch 1` for `--epochs 1`.

`python -m monai.bundle run` accepts any `--id value` and adds an unknown one to the config, where nothing reads it.
"""

from __future__ import annotations

import difflib
import inspect
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

from fire.parser import DefaultParseValue
from monai.bundle import ConfigParser, ConfigWorkflow, create_workflow, run
from monai.bundle.utils import DEFAULT_EXP_MGMT_SETTINGS
from monai.utils import ensure_tuple

from samora_monai.errors import InputError

SEPARATOR = "::"
# what `monai.bundle run` itself understands
RUN_ARGUMENTS = {name for call in (run, create_workflow, ConfigWorkflow) for name in inspect.signature(call).parameters}


def check_overrides() -> None:
    """Check the settings that this process was started with against its config files.

    Does nothing unless the process is `python -m monai.bundle run ...`. An id must exist; below a component or a list
    only its parent must, since a component takes arguments that the config leaves out.

    Raises:
        InputError: naming the unknown setting and the nearest known one.
    """
    if Path(sys.argv[0]).parts[-3:] != ("monai", "bundle", "__main__.py") or sys.argv[1:2] != ["run"]:
        return
    given = parse_flags(sys.argv[2:])
    if given.get("args_file") is not None:
        given = {**ConfigParser.load_config_file(given["args_file"]), **given}
    if given.get("config_file") is None:
        return
    files = ensure_tuple(given["config_file"])
    config = ConfigParser.load_config_files(files)
    config |= _tracking_settings(given.get("tracking"))
    where = ", ".join(map(str, files))
    for key, value in given.items():
        name = key.replace("#", SEPARATOR)
        if name not in RUN_ARGUMENTS:
            _check(name, config, where)
            _check_spelling(name, value)
            _check_number(name, value, config)


def parse_flags(arguments: Sequence[str]) -> dict[str, Any]:
    """The `--key value`, `--key=value` and `--flag` among a command's arguments, with values read as fire reads them.

    Positional arguments are passed over; `--noflag` is `flag: False`, as in fire. What follows a lone `--` is fire's.
    """
    if "--" in arguments:
        arguments = arguments[: arguments.index("--")]
    flags: dict[str, Any] = {}
    for i, argument in enumerate(arguments):
        if not _is_flag(argument):
            continue
        key, equals, value = argument.lstrip("-").partition("=")
        key = key.replace("-", "_")
        if equals:
            flags[key] = DefaultParseValue(value)
        elif i + 1 < len(arguments) and not _is_flag(arguments[i + 1]):
            flags[key] = DefaultParseValue(arguments[i + 1])
        elif key.startswith("no"):
            flags[key[2:]] = False
        else:
            flags[key] = True
    return flags


def _is_flag(argument: str) -> bool:
    return argument.startswith("--") or (argument.startswith("-") and argument[1:2].isalpha())


def _tracking_settings(tracking: Any) -> dict[str, Any]:
    # the top-level ids that `--tracking` adds to the config, all open to overrides
    if tracking is None:
        return {}
    built_in: dict[str, Any] = DEFAULT_EXP_MGMT_SETTINGS
    named = isinstance(tracking, str) and tracking in built_in
    if named:
        require_mlflow()
    settings = built_in[tracking] if named else ConfigParser.load_config_files(tracking)
    return settings["configs"]


def require_mlflow() -> None:
    """Check that MLflow is installed.

    Raises:
        InputError: it is not.
    """
    if find_spec("mlflow") is None:
        raise InputError("'--tracking mlflow' needs MLflow, which is not installed; pip install 'samora_monai[track]'")


def _check(name: str, config: dict[str, Any], where: str) -> None:
    *parents, last = name.split(SEPARATOR)
    if name.startswith(ConfigParser.meta_key):
        return
    node: Any = config
    for depth, part in enumerate(parents, 1):
        if not _has(node, part):
            _refuse(name, config, where)
        node = node[part] if isinstance(node, dict) else node[int(part)]
        if not isinstance(node, (dict, list)):
            raise InputError(
                f"setting '{name}' does not exist in {where}: "
                f"'{SEPARATOR.join(parents[:depth])}' is the value {node!r}, override that"
            )
    is_new_argument = bool(parents) and isinstance(node, dict)
    if not is_new_argument and not _has(node, last):
        _refuse(name, config, where)


def _check_spelling(name: str, value: Any) -> None:
    # fire reads Python's literals and nothing else; what it takes for text would be true in any condition
    python = {"true": "True", "false": "False", "null": "None"}
    text = str(value)
    if text in python and (SEPARATOR in name or text == "null"):
        raise InputError(f"'--{name} {text}' would be read as the text '{text}'; write --{name} {python[text]}")


def _check_number(name: str, value: Any, config: dict[str, Any]) -> None:
    numeric = isinstance(config.get(name), (int, float)) and not isinstance(config[name], bool)
    if numeric and isinstance(value, str) and not value.startswith(("$", "@", "%")):
        raise InputError(f"'--{name}' must be a number, got {value!r}; the config has {config[name]}")


def _has(node: dict[str, Any] | list[Any], part: str) -> bool:
    return part in node if isinstance(node, dict) else part.isdigit() and int(part) < len(node)


def _refuse(name: str, config: dict[str, Any], where: str) -> NoReturn:
    near = difflib.get_close_matches(name, _ids(config), n=1)
    hint = f"; did you mean '{near[0]}'?" if near else "; see the top of that file for the settings"
    raise InputError(f"unknown setting '{name}' in {where}{hint}")


def _ids(node: Any, prefix: str = "") -> list[str]:
    # every id of a config: "train", "train::trainer", ...
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    ids = []
    for key, value in items:
        ids += [f"{prefix}{key}", *_ids(value, f"{prefix}{key}{SEPARATOR}")]
    return ids
