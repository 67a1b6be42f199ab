"""Model files: the flat state dict of a whole network, as MONAI bundles have it; inference needs no other weights."""

from __future__ import annotations

from samora_monai.checkpoints.files import LoadReport, Source, copy_strictly, read_state
from samora_monai.errors import MissingFileError
from samora_monai.networks.segmenter import Segmenter


def load_model(net: Segmenter, source: Source) -> LoadReport:
    """Load a bundle's `model.pt`, or the `"model"` entry of a training checkpoint, strictly.

    Raises:
        MissingFileError, InputError: no such file; damaged; keys or shapes of another network (names the first).
    """
    try:
        state, name = read_state(source)
    except MissingFileError as e:
        raise MissingFileError(f"no model {str(source)!r}; train one first, or name one with --checkpoint") from e
    remedy = f"it was trained with other settings than this network ({net.describe()}); give it the same ones"
    return LoadReport(name, copied=copy_strictly(net, state, list(net.state_dict()), name, remedy))
