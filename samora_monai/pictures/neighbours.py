"""Pictures of the image expert: the slices of other cases with the most similar features.

Similarity is the cosine between pooled features minus their mean over all slices; without the subtraction, all slices
would be similar.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from ignite.engine import Events
from monai.data import MetaTensor
from monai.engines import Evaluator
from monai.utils import CommonKeys as Keys
from monai.utils import convert_to_tensor
from torch import Tensor
from tqdm import tqdm

from samora_monai.errors import InputError
from samora_monai.networks.segmenter import resize_image
from samora_monai.pictures.expert import PictureLog, content_slices, extent_of, upright
from samora_monai.pictures.panels import Panel, save_panels

NEIGHBOURS = 4
THUMBNAIL = 128  # pixels, of both sides
SAME_PLACE = 0.1  # slices of a case that are closer than this fraction of it look alike


@dataclass(frozen=True)
class GalleryCase:
    """The features and thumbnails of a case.

    Args:
        name, path: of the case.
        features: of its slices, `[Z, dim]`.
        thumbnails: its slices `[Z, H, W]`, upright, uint8.
        extent: width and height of a slice in mm.
        queries: the slices whose neighbours are shown.
    """

    name: str
    path: str
    features: Tensor
    thumbnails: Tensor
    extent: tuple[float, float]
    queries: tuple[int, ...]

    def place(self, index: int) -> str:
        """The name of slice `index`, empty for a picture."""
        return f"slice {index}" if len(self.features) > 1 else ""

    def panel(self, index: int, words: str, query: bool = False) -> Panel:
        """Slice `index`, titled with the case, the slice and `words`."""
        name = self.name if len(self.name) <= 24 else f"{self.name[:11]}...{self.name[-10:]}"
        below = "  ".join(filter(None, (self.place(index), words)))
        return Panel(self.thumbnails[index].numpy() / 255, f"{name}\n{below}", self.extent, marked=query)


def directions(features: Sequence[Tensor]) -> list[Tensor]:
    """Unit vectors, `[Z, dim]` for each case, from the common mean of the features to the features of its slices."""
    mean = torch.cat(list(features)).mean(0)
    return [F.normalize(f - mean, dim=1) for f in features]


def nearest_slices(units: Sequence[Tensor], case: int, index: int) -> list[tuple[int, int, float]]:
    """Find the slices of other cases that are most similar to slice `index` of case `case`.

    Skips a slice that is closer than a tenth of its case to one already found. If there is only one case, its slices at
    that distance from the query are considered.

    Args:
        units: `directions` of all cases.

    Returns:
        case, slice and similarity in [-1, 1] of up to four slices, the most similar first.
    """
    alone = len(units) == 1
    query = units[case][index]
    places = [(c, z) for c, unit in enumerate(units) if alone or c != case for z in range(len(unit))]
    similarity = torch.cat([unit @ query for c, unit in enumerate(units) if alone or c != case])
    passed = {(case, index)} if alone else set()  # slices whose surroundings are skipped
    found: list[tuple[int, int, float]] = []
    for i in similarity.argsort(descending=True, stable=True).tolist():
        c, z = places[i]
        apart = max(1, math.ceil(SAME_PLACE * len(units[c])))
        if all(c != other or abs(z - at) >= apart for other, at in passed):
            found.append((c, z, float(similarity[i])))
            passed.add((c, z))
        if len(found) == NEIGHBOURS:
            break
    return found


class NeighbourPictures:
    """Evaluator handler that draws three slices of every case, each beside its `nearest_slices`.

    Since a neighbour may be in any case, the pictures follow when all cases are through the network; until then their
    features and thumbnails are kept, 20 KB for a slice. The evaluator's output holds the image `[1, X, Y, Z]`, RAS,
    in [0, 1], and the pooled features `[dim, Z]`.

    Args:
        output_dir: folder of the pictures `<case>.png`.
    """

    def __init__(self, output_dir: str | os.PathLike[str]) -> None:
        self.log = PictureLog(output_dir)
        self.cases: list[GalleryCase] = []

    def attach(self, engine: Evaluator) -> None:
        """Draw the cases of `engine`, an evaluator that decollates."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._started)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._completed)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._draw)

    def _started(self, engine: Evaluator) -> None:
        self.cases = []
        # no bar unless on a terminal
        self.bar = tqdm(total=engine.state.epoch_length, desc="reading scans", unit="scan", disable=None)

    def _completed(self, engine: Evaluator) -> None:
        for case, output in zip(engine.state.batch, engine.state.output, strict=True):
            image: MetaTensor = output[Keys.IMAGE]
            self.cases.append(
                GalleryCase(
                    name=case["case"],
                    path=case["path"],
                    features=output[Keys.PRED].T.float().cpu(),
                    thumbnails=thumbnails(image),
                    extent=extent_of(image),
                    queries=tuple(content_slices(image)),
                )
            )
        self.bar.update()

    def _draw(self, engine: Evaluator) -> None:
        self.bar.close()
        if sum(len(case.features) for case in self.cases) < 2:
            raise InputError("one slice has no neighbours; give a volume or several pictures with --dataset_dir")
        units = directions([case.features for case in self.cases])
        self.log.start()
        for i, case in enumerate(self.cases):
            rows, words = [], []
            for index in case.queries:
                found = nearest_slices(units, i, index)
                neighbours = [self.cases[c].panel(z, f"{similarity:.2f}") for c, z, similarity in found]
                rows.append([case.panel(index, "", query=True), *neighbours])
                for c, z, similarity in found[:1]:
                    names = (case.place(index), "like", self.cases[c].name, self.cases[c].place(z), f"{similarity:.2f}")
                    words.append(" ".join(filter(None, names)))
            save_panels(
                self.log.path_of(case.name), rows, f"{case.name}: nearest slices and their cosine, image expert"
            )
            self.log.done(i + 1, len(self.cases), case.path, case.name, ", ".join(words))


def thumbnails(volume: Tensor) -> Tensor:
    """RAS volume `[1, X, Y, Z]` in [0, 1] -> upright slices `[Z, 128, 128]`, uint8."""
    slices = convert_to_tensor(volume, track_meta=False).movedim(-1, 0)  # [Z, 1, X, Y]
    small = [(255 * resize_image(s[None], (THUMBNAIL, THUMBNAIL))).round().to("cpu", torch.uint8) for s in slices]
    return torch.from_numpy(upright(torch.cat(small)[:, 0]).copy())
