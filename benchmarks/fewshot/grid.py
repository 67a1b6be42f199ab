"""The systems, the ablations, and the cells of the grid, each of which is one training.

A row holds only its differences from `bundles/samora_segmentation/configs/train.yaml`, so that base, steps, batch,
augmentation and slices are the same in all rows of one grid.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from samora_monai.errors import InputError
from samora_monai.networks import LEVELS, PRESETS

REFERENCE = "samora-attention"  # the row that the ablations are compared with
FEW = 4  # labelled scans of the ablations and of the convergence rows
EPOCHS = 20  # an epoch is a twentieth of the steps, whatever the number of scans
MILESTONES = (1, 2, 4, 10, 20)  # epochs after which a converging row is scored: 5, 10, 20, 50, 100 %
CONVERGING = ("samed", REFERENCE)


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Args:
        title: name in the table.
        settings: settings of `train.yaml`, in addition to those of all rows.
        files: variant of the expert files that it starts from (see `stage_one`); None for no experts.
        overlay: name of a config of this folder that overlays `train.yaml`.
        longer: number of steps, as a multiple of the budget's.
    """

    title: str
    settings: dict[str, Any] = field(default_factory=dict)
    files: str | None = None
    overlay: str | None = None
    longer: int = 1


_KEPT = {"expert_rate": 0.25, "weight_decay_on": "matrices"}


def _samora(title: str, files: str = "trained", **settings: Any) -> Row:
    ours = {"experts": list(LEVELS), "fusion": "attention", "trainable": "adapters+experts"}
    return Row(title, ours | settings, files)


SYSTEMS = {
    "frozen": Row("frozen base, decoder", {"experts": [], "trainable": "decoder"}),
    "samed": Row("SAMed", {"experts": ["task"]}),
    "h-sam": Row("H-SAM", {"experts": ["task"], "decoder": "hierarchical"}),
    REFERENCE: _samora("SAMora, attention"),
    "samora-block": _samora("SAMora, block", fusion="block"),
    "h-samora": _samora("H-SAMora", decoder="hierarchical"),
    "samed-unlabeled": Row("SAMed, also on unlabelled scans", {"experts": ["task"], "unlabeled": True}),
    "samora-unlabeled": _samora("SAMora, also on unlabelled scans", unlabeled=True),
    "unet": Row("MONAI U-Net, 2-D", overlay="unet.yaml"),
    "unet-longer": Row("MONAI U-Net, 2-D, three times the steps", overlay="unet.yaml", longer=3),
}


def ablations(encoder: str) -> dict[str, Row]:
    """Variants of SAMora; widths are fractions of the encoder's."""
    width = PRESETS[encoder]["embed_dim"]
    levels = {
        f"without-{level}": _samora(f"without the {level} expert", experts=[name for name in LEVELS if name != level])
        for level in LEVELS
    }
    levels |= {
        f"{level}-alone": Row(f"{level} expert alone, as SAMed's start", {"experts": [level]}, "trained")
        for level in LEVELS
    }
    return levels | {
        "sum": _samora("plain sum, experts frozen", fusion=None, trainable="decoder"),
        "sum-trained": _samora("plain sum, experts trained too", fusion=None, trainable="adapters"),
        "random-experts": _samora("random experts of the same norm", "random"),
        "random-start": _samora("HL-Attn not from zero", fusion_start="random"),
        "image-first": _samora("fusion order image, patch, pixel", fusion_order=list(LEVELS)),
        "half-width": _samora("HL-Attn at half the width", fusion_width=width // 2),
        "quarter-width": _samora("HL-Attn at a quarter of the width", fusion_width=width // 4),
        "fusion-norm": _samora("LayerNorm on HL-Attn's queries and keys", fusion_norm=True),
        "global-blocks": _samora("HL-Attn in the global blocks", fusion_blocks="global"),
        "last-third": _samora("HL-Attn in the last third of the blocks", fusion_blocks="last_third"),
        "matrices-decay": _samora("no weight decay on experts, norms, biases, tokens", weight_decay_on="matrices"),
        "average": _samora("exponential average of the weights", ema=0.99),
        "slow-experts": _samora("experts at a quarter of the learning rate", expert_rate=0.25),
        "experts-frozen": _samora("experts frozen, as published", trainable="adapters"),
        "random-frozen": _samora("random experts of the same norm, frozen", "random", trainable="adapters"),
        "raw-targets": _samora("no LayerNorm on the teachers' targets", "raw"),
        "standardised-targets": _samora("teachers' targets standardised by channel", "standardised"),
        "kept-experts": _samora("the same, experts slower and without decay", "standardised", **_KEPT),
        "half-rate": _samora("the same, at half the learning rate", "standardised", learning_rate=0.001, **_KEPT),
        "clipped": _samora("the same, gradients limited", "standardised", max_gradient_norm=0.3, **_KEPT),
        "clipped-samed": Row("SAMed, gradients limited", {"experts": ["task"], "max_gradient_norm": 0.3}),
        "half-rate-samed": Row("SAMed, at half the learning rate", {"experts": ["task"], "learning_rate": 0.001}),
        "dense-targets": _samora("SimCLR's map as a target too", "dense"),
        "anchored": _samora("experts anchored to the base's embedding", "anchored"),
        "public-teachers": _samora("teachers not continued", "public"),
    }


def all_rows(encoder: str) -> dict[str, Row]:
    """Systems first, then ablations."""
    return SYSTEMS | ablations(encoder)


QUICK_ROWS = tuple(name for name in SYSTEMS if name != "samora-block")


@dataclass(frozen=True)
class Cell:
    """One training: a row, a number of labelled scans and a seed.

    Args:
        system: a key of `SYSTEMS`.
        ablation: a key of `ablations`, or an empty string.
        labeled: number of labelled scans.
        seed: seed of weights, order and augmentation.
        milestones: epochs after which it is scored; the last one is the whole budget.
    """

    system: str
    ablation: str
    labeled: int
    seed: int
    milestones: tuple[int, ...] = (EPOCHS,)

    @property
    def row(self) -> str:
        return self.ablation or self.system

    @property
    def name(self) -> str:
        return f"{self.row}_{self.labeled}_scans_seed_{self.seed}"


def cells(
    rows: Sequence[str], labeled: Sequence[int], seeds: Sequence[int], encoder: str, few: int = FEW
) -> Iterator[Cell]:
    """Yield all cells, seed by seed, so that a stopped grid has every row.

    Args:
        rows: keys of `all_rows`.
        labeled: numbers of labelled scans of the systems.
        seeds: seeds, one training each.
        encoder: preset of the base.
        few: number of labelled scans of the ablations and of the convergence rows.

    Raises:
        InputError: an unknown row.
    """
    known = all_rows(encoder)
    if unknown := [name for name in rows if name not in known]:
        raise InputError(f"unknown row {unknown[0]!r}; choose among {', '.join(known)}")
    for seed in seeds:
        for name in rows:
            if name not in SYSTEMS:
                yield Cell(REFERENCE, name, few, seed)
                continue
            for count in labeled:
                converging = name in CONVERGING and count == few
                yield Cell(name, "", count, seed, MILESTONES if converging else (EPOCHS,))
