"""Pictures of the image expert: the slices of other cases with the most similar features.

Similarity is the cosine between pooled features minus their mean over all slices; without the subtraction, all slices
would be similar.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from ignite.engine import Events
from ignite.handlers import ProgressBar
from monai.data import MetaTensor
from monai.engines import Evaluator
from monai.utils import CommonKeys as Keys
from monai.utils import convert_to_tensor
from torch import Tensor

from samora_monai.errors import InputError
from samora_monai.networks.framing import resize_image
from samora_monai.pictures.expert import ExpertPictures, content_slices, extent_of, upright
from samora_monai.pictures.panels import Panel

NEIGHBOURS = 4
THUMBNAIL = 128  # pixels, of both sides
SAME_PLACE = 0.1  # slices of a case that are closer than this fraction of its slices are almost equal


@dataclass(frozen=True)
class GalleryCase:
    """A case: features `[Z, dim]`, upright thumbnails `[Z, H, W]` (uint8), slices to find neighbours of (`queries`)."""

    name: str
    path: str
    features: Tensor
    thumbnails: Tensor
    extent: tuple[float, float]  # width and height of a slice in mm
    queries: list[int]

    def slice_name(self, index: int) -> str:
        """The name of slice `index`, empty for a picture."""
        return f"slice {index}" if len(self.features) > 1 else ""

    def panel(self, index: int, words: str, query: bool = False) -> Panel:
        """Slice `index`, titled with the case, the slice and `words`."""
        name = self.name if len(self.name) <= 24 else f"{self.name[:11]}...{self.name[-10:]}"
        below = "  ".join(filter(None, (self.slice_name(index), words)))
        return Panel(self.thumbnails[index].numpy() / 255, f"{name}\n{below}", self.extent, marked=query)


def directions(features: Sequence[Tensor]) -> list[Tensor]:
    """Unit vectors, `[Z, dim]` for each case, from the common mean of the features to the features of its slices."""
    mean = torch.cat(list(features)).mean(0)
    return [F.normalize(f - mean, dim=1) for f in features]


def nearest_slices(units: Sequence[Tensor], case: int, index: int) -> list[tuple[int, int, float]]:
    """Find the slices of other cases that are most similar to slice `index` of case `case`.

    Slices closer than `SAME_PLACE` to one already found are skipped. A single case is searched itself, except for the
    slices that are so close to the query.

    Args:
        units: `directions` of all cases.

    Returns:
        case, slice and similarity in [-1, 1] of up to four slices, the most similar first.
    """
    alone = len(units) == 1
    query = units[case][index]
    places = [(c, z) for c, unit in enumerate(units) if alone or c != case for z in range(len(unit))]
    similarity = torch.cat([unit @ query for c, unit in enumerate(units) if alone or c != case])
    taken = {(case, index)} if alone else set()  # slices whose neighbourhood is skipped
    found: list[tuple[int, int, float]] = []
    for i in similarity.argsort(descending=True, stable=True).tolist():
        c, z = places[i]
        apart = max(1, math.ceil(SAME_PLACE * len(units[c])))
        if all(c != other or abs(z - at) >= apart for other, at in taken):
            found.append((c, z, float(similarity[i])))
            taken.add((c, z))
        if len(found) == NEIGHBOURS:
            break
    return found


class NeighbourPictures(ExpertPictures):
    """Handler that draws three slices of every case, each beside its `nearest_slices`.

    A neighbour may be in any case, so the pictures are drawn after the last case. Until then, features and thumbnails
    are kept, 20 KB per slice. The evaluator's output holds the image `[1, X, Y, Z]`, RAS, in [0, 1], and the pooled
    features `[dim, Z]`.
    """

    def attach(self, engine: Evaluator) -> None:
        """Draw the cases of `engine` at the end of the epoch, after a progress bar on terminals."""
        super().attach(engine)
        ProgressBar(desc="reading scans", disable=None).attach(engine)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._draw_all)

    def start(self, engine: Evaluator) -> None:
        """Also discard the cases of the run before."""
        super().start(engine)
        self.cases: list[GalleryCase] = []

    def draw(self, case: Mapping[str, Any], output: Mapping[str, Any]) -> None:
        """Keep one case."""
        image: MetaTensor = output[Keys.IMAGE]
        features = output[Keys.PRED].T.float().cpu()
        small, queries = thumbnails(image), content_slices(image)
        self.cases.append(GalleryCase(case["case"], case["path"], features, small, extent_of(image), queries))

    def _draw_all(self, engine: Evaluator) -> None:
        if sum(len(case.features) for case in self.cases) < 2:
            raise InputError("one slice has no neighbours; give a volume or several pictures with --dataset_dir")
        units = directions([case.features for case in self.cases])
        super().start(engine)  # the time of a case is that of its picture
        for i, case in enumerate(self.cases):
            rows, results = [], []
            for index in case.queries:
                found = nearest_slices(units, i, index)
                neighbours = [self.cases[c].panel(z, f"{similarity:.2f}") for c, z, similarity in found]
                rows.append([case.panel(index, "", query=True), *neighbours])
                c, z, similarity = found[0]
                nearest = self.cases[c]
                names = (case.slice_name(index), "like", nearest.name, nearest.slice_name(z), f"{similarity:.2f}")
                results.append(" ".join(filter(None, names)))
            self.save(case.name, case.path, rows, "nearest slices and their cosine, image expert", ", ".join(results))


def thumbnails(volume: Tensor) -> Tensor:
    """RAS volume `[1, X, Y, Z]` in [0, 1] -> upright slices `[Z, 128, 128]`, uint8."""
    slices = convert_to_tensor(volume, track_meta=False).movedim(-1, 0)  # [Z, 1, X, Y]
    small = [(255 * resize_image(s[None], (THUMBNAIL, THUMBNAIL))).round().to("cpu", torch.uint8) for s in slices]
    return torch.from_numpy(upright(torch.cat(small)[:, 0]).copy())
