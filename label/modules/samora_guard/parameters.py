"""Checks of the settings that a request carries as JSON, in a form's `params` or as its body.

MONAI Label merges them over its own request, so that `{"image": "/any/path"}` would replace the checked image, and puts
some into configs of MONAI, where a text that starts with `$` is executed. Here each known setting has its check. Others
are passed on only where they cannot name anything: numbers, booleans and lists of them, as the points of a click; for
strategies and scoring methods also words.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any

from samora_guard.names import SUFFIXES, check_tag, check_word
from samora_guard.refusal import Refusal, shown

MAX_JSON = 4 << 20  # bytes
_KEY = re.compile(r"[\w][\w .#-]{0,63}")
# what the guard has checked already, or what MONAI Label sets itself
_ABOUT_FILES = ("app", "app_dir", "bundle_path", "bundle_root", "file", "image", "image_path", "path", "studies")
_ABOUT_THE_REQUEST = ("_id", "_image_id", "description", "method", "model", "output", "session", "session_id", "user")
_ABOUT_THE_WAY = ("pipeline", "preload", "result_write_to_file", "skip_writer", "strategy")
_RESERVED = frozenset((*_ABOUT_FILES, *_ABOUT_THE_REQUEST, *_ABOUT_THE_WAY))


def read_json(text: bytes, what: str) -> dict[str, Any]:
    """Read a JSON object; nothing in it may be stated twice or be infinite.

    Raises:
        Refusal: 400 or 413.
    """
    if len(text) > MAX_JSON:
        raise Refusal(413, f"{what} has more than {MAX_JSON} bytes")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a key is stated twice")
        return found

    def constant(name: str) -> None:
        raise ValueError(f"{name} is not a number")

    try:
        value = json.loads(text.decode("utf-8") or "{}", object_pairs_hook=unique, parse_constant=constant)
        json.dumps(value, allow_nan=False).encode("ascii")  # finite, and not nested too deeply to write
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"{what} is not valid JSON: {shown(str(error) or 'nested too deeply')}") from error
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise Refusal(400, f"{what} is a JSON object; got {shown(value)}")
    return value


def check_parameters(given: dict[str, Any], words: bool = False, nested: bool = False) -> dict[str, Any]:
    """Check the settings of an inference, training, strategy or scoring, and return them.

    Args:
        given: the settings.
        words: strings of a single word are allowed in unknown settings.
        nested: settings may be below the name of a model or method, one level deep.

    Raises:
        Refusal: 400.
    """
    if len(given) > 200:
        raise Refusal(400, f"at most 200 settings are expected; got {len(given)}")
    checked = {}
    for key, value in given.items():
        if nested and isinstance(value, dict) and key not in _RESERVED and key not in _CHECKS:
            checked[check_word(key, "a model's or method's name")] = check_parameters(value, words)
            continue
        if _KEY.fullmatch(key) is None or key in _RESERVED:
            raise Refusal(400, f"{shown(key)} is not a setting of a request")
        if value is None:  # as if it were not stated
            continue
        if key in _CHECKS:
            _CHECKS[key](value, key)
            checked[key] = value
        elif _plain(value) or (words and isinstance(value, str) and (not value or check_word(value, key))):
            checked[key] = value
        else:
            raise Refusal(400, f"setting {shown(key)} is a number, a boolean or a list of these; got {shown(value)}")
    return checked


def check_info(given: dict[str, Any]) -> dict[str, Any]:
    """Check the notes on an image or label, which are stored and given out, and name nothing.

    Raises:
        Refusal: 400.
    """
    for key, value in given.items():
        if _KEY.fullmatch(key) is None or key in ("path", "name", "ts", "label_tag", "RetrieveURL"):
            raise Refusal(400, f"{shown(key)} is not a note that a client can set")
        _text_in(value, key)
    return given


def _plain(value: Any, depth: int = 0) -> bool:
    """Whether a value is a number, a boolean or a list of these, up to four levels deep."""
    if isinstance(value, list):
        return depth < 4 and all(_plain(item, depth + 1) for item in value)
    return isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value))


def _text_in(value: Any, key: str, depth: int = 0) -> None:
    """Check that every text in `value` is one short line."""
    if isinstance(value, dict | list) and depth < 4:
        for item in (*value, *value.values()) if isinstance(value, dict) else value:
            _text_in(item, key, depth + 1)
    elif isinstance(value, str):
        if len(value) > 1000 or any(ord(sign) < 32 or 127 <= ord(sign) < 160 for sign in value):
            raise Refusal(400, f"setting {shown(key)} holds a text of one line, at most 1000 characters")
    elif value is not None and not isinstance(value, bool | int | float):
        raise Refusal(400, f"setting {shown(key)} is nested too deeply")


def _name(value: Any, key: str) -> None:
    """A name for people, as of an organ: it is a part of no path."""
    if not isinstance(value, str) or re.fullmatch(r"(\w[\w .,()+-]{0,199})?", value) is None or ".." in value:
        raise Refusal(400, f"setting {shown(key)} is a name of letters, digits and spaces; got {shown(value)}")


def _text(value: Any, key: str) -> None:
    """A line that is only stored."""
    if not isinstance(value, str):
        raise Refusal(400, f"setting {shown(key)} is a text; got {shown(value)}")
    _text_in(value, key)


def _one_of(*choices: Any) -> Callable[[Any, str], None]:
    def check(value: Any, key: str) -> None:
        if not any(value == choice and type(value) is type(choice) for choice in choices):
            raise Refusal(400, f"setting {shown(key)} is one of {', '.join(map(repr, choices))}; got {shown(value)}")

    return check


def _matching(pattern: str, expected: str) -> Callable[[Any, str], None]:
    """A string that matches `pattern`, or a list of such strings, as clients send choices back."""
    expression = re.compile(pattern, re.ASCII)

    def check(value: Any, key: str) -> None:
        values = value if isinstance(value, list) and value else [value]
        if len(values) > 64 or not all(isinstance(item, str) and expression.fullmatch(item) for item in values):
            raise Refusal(400, f"setting {shown(key)} is {expected}; got {shown(value)}")

    return check


def _number(low: float, high: float, whole: bool = True) -> Callable[[Any, str], None]:
    def check(value: Any, key: str) -> None:
        kind = int if whole else int | float
        if isinstance(value, bool) or not isinstance(value, kind) or not low <= value <= high:
            raise Refusal(400, f"setting {shown(key)} is a number from {low} to {high}; got {shown(value)}")

    return check


def _tag(value: Any, key: str) -> None:
    if not isinstance(value, str):
        raise Refusal(400, f"setting {shown(key)} is the tag of a label; got {shown(value)}")
    check_tag(value)


def _prompt(value: Any, key: str) -> None:
    """Classes to segment, by number or name."""
    for item in value if isinstance(value, list) else [value]:
        if not isinstance(item, int):
            _name(item, key)


def _label_info(value: Any, key: str) -> None:
    """Names and colours of segments; `segmentAttribute` would be written into the DICOM SEG as it is."""
    entries = value if isinstance(value, list) else None
    if entries is None or len(entries) > 256 or not all(isinstance(entry, dict) for entry in entries):
        raise Refusal(400, f"setting {shown(key)} is a list of segments; got {shown(value)}")
    for entry in entries:
        if wrong := entry.keys() - {"name", "description", "color", "model_name", "idx", "id", "labelID"}:
            raise Refusal(400, f"a segment of {shown(key)} has no {shown(min(wrong))}")
        _text_in(entry, key)


_BOOLEAN = _one_of(True, False)
_CHECKS: dict[str, Callable[[Any, str], None]] = {
    "client_id": _text,
    "device": _matching(r"[A-Za-z][A-Za-z0-9 ().:_-]{0,80}", "cpu, cuda, cuda:N or the name of a GPU"),
    "force_multi_gpu": _BOOLEAN,
    "gpus": _matching(r"(all|[0-9]{1,2}(,[0-9]{1,2}){0,15}|)", "'all' or numbers with commas"),
    "images": _one_of("all", "labeled", "unlabeled"),
    "label": _name,
    "label_info": _label_info,
    "label_prompt": _prompt,
    "label_tag": _tag,
    "logging": _one_of("DEBUG", "INFO", "WARNING", "ERROR", "debug", "info", "warning", "error"),
    "max_batch_size": _number(0, 1_000_000),
    "max_epochs": _number(1, 100_000),
    "max_workers": _number(0, 64),
    "model_filename": _matching(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}\.pt", "the name of one of the model's files, .pt"),
    "multi_gpu": _BOOLEAN,
    "pretrained": _BOOLEAN,
    "restore_label_idx": _BOOLEAN,
    "result_compress": _BOOLEAN,
    "result_dtype": _one_of("uint8", "uint16", "int16", "int32", "float32"),
    "result_extension": _one_of(*SUFFIXES),
    "run_id": _one_of("", "run", "training"),
    "save_label": _BOOLEAN,
    "start_from": _matching(r"none|original|final", "none, original or final"),
    "tracking": _matching(r"(None|none|)", "None: experiments are not tracked by this server"),
    "tracking_experiment_name": _name,
    "tracking_run_name": _name,
    "tracking_uri": _one_of(""),
    "val_split": _number(-1, 0.99, whole=False),
}
