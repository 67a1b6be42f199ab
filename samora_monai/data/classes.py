"""Names of the classes, from the settings or the datalist."""

from __future__ import annotations

from collections.abc import Sequence

from samora_monai.data.datalist import Cases
from samora_monai.errors import InputError
from samora_monai.settings import is_whole

MAX_CLASSES = 256  # label files are uint8
_REMEDY = "use --num_classes N or --class_names \"['background','liver']\""


def resolve_class_names(
    cases: Cases, num_classes: int | None = None, class_names: Sequence[str] | None = None
) -> tuple[str, ...]:
    """Return the name of each class, background first.

    They are `class_names` if given; else the names of the datalist if there are `num_classes` of them or `num_classes`
    is not given; else `"background", "class 1", ...`.

    Raises:
        InputError: the names are not given, the two settings contradict each other, or there are not 2 to 256 classes.
    """
    if num_classes is not None and not is_whole(num_classes):
        raise InputError(f"num_classes must be a whole number, got {num_classes!r}; {_REMEDY}")
    if class_names is not None:
        if isinstance(class_names, str) or not all(isinstance(name, str) for name in class_names):
            raise InputError(f"class_names must be a list of names, got {class_names!r}; {_REMEDY}")
        names = tuple(class_names)
        if num_classes not in (None, len(names)):
            raise InputError(f"num_classes is {num_classes} but class_names has {len(names)} names; give one of them")
    elif num_classes is not None:
        names = cases.class_names or ()
        if len(names) != num_classes:
            names = ("background", *(f"class {value}" for value in range(1, num_classes)))[: max(num_classes, 0)]
    elif cases.class_names is not None:
        names = cases.class_names
    else:
        raise InputError(f"'{cases.source}' does not name the classes; {_REMEDY}")
    if not 2 <= len(names) <= MAX_CLASSES:
        raise InputError(f"expected 2 to {MAX_CLASSES} classes including background, got {len(names)}; {_REMEDY}")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"two classes have the name '{twice}'; {_REMEDY}")
    return names
