"""Published splits of Synapse, LA and PROMISE12: the cases and slices for training and test in the papers.

Sources: SAMed (https://github.com/hitachinsk/SAMed) and H-SAM (https://github.com/Cccccczh404/H-SAM), `lists/`; UA-MT
(https://github.com/yulequan/UA-MT), `data/`.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Split:
    """The split of one data set.

    Args:
        modality: CT or MR.
        class_names: background first.
        training: names of the training cases.
        validation: names of the test cases of the papers.
        slices: the slices along the third axis to keep of each training case; cases without an entry are kept whole.
        num_slices: number of slices of each training case, where lists of slices depend on it.
    """

    modality: str
    class_names: tuple[str, ...]
    training: tuple[str, ...]
    validation: tuple[str, ...]
    slices: dict[str, tuple[int, ...]] = field(default_factory=dict)
    num_slices: dict[str, int] = field(default_factory=dict)


# SAMed, H-SAM: lists_Synapse/train.txt (2211 slices), with the number of slices of each case
_SYNAPSE_TRAINING = {
    "case0005": 117, "case0006": 131, "case0007": 163, "case0009": 149, "case0010": 148, "case0021": 143,
    "case0023": 96, "case0024": 124, "case0026": 131, "case0027": 88, "case0028": 89, "case0030": 153,
    "case0031": 93, "case0033": 104, "case0034": 98, "case0037": 99, "case0039": 90, "case0040": 195,
}  # fmt: skip
# SAMed, H-SAM: lists_Synapse/test_vol.txt
_SYNAPSE_TEST = (
    "case0001", "case0002", "case0003", "case0004", "case0008", "case0022", "case0025", "case0029", "case0032",
    "case0035", "case0036", "case0038",
)  # fmt: skip
# H-SAM: lists_Synapse/train_220.txt, 221 slices
_SYNAPSE_10PCT = {
    "case0005": (4, 5, 22, 46, 58, 60, 65, 77, 91, 110, 116),
    "case0006": (0, 3, 7, 16, 58, 60, 61, 65, 77, 85, 87, 93, 125),
    "case0007": (5, 7, 20, 38, 62, 68, 69, 71, 72, 82, 90, 93, 113, 154),
    "case0009": (6, 11, 20, 24, 26, 30, 36, 44, 48, 60, 73, 75, 83, 89, 90, 91, 107, 117, 122, 132, 143),
    "case0010": (2, 7, 36, 63, 78, 91, 98, 99, 110, 134, 137),
    "case0021": (2, 4, 9, 21, 41, 42, 61, 81, 82, 123, 125, 133, 137),
    "case0023": (6, 10, 14, 16, 18, 19, 23, 24, 32, 35, 37, 65, 78, 79, 93),
    "case0024": (2, 6, 37, 38, 43, 46, 51, 63, 72, 90, 97, 100, 112, 123),
    "case0026": (9, 16, 22, 36, 54, 85, 88, 91, 96, 97, 108, 123, 124),
    "case0027": (2, 14, 16, 21, 23, 50, 71, 82),
    "case0028": (17, 21, 37, 39, 53, 59, 69, 70),
    "case0030": (3, 9, 19, 41, 42, 64, 65, 87, 91, 101, 130, 151),
    "case0031": (2, 16, 25, 26, 31, 35, 56, 61, 69, 74, 86),
    "case0033": (14, 45, 49, 56, 69, 77, 79, 94),
    "case0034": (5, 16, 44, 61, 62, 66, 70, 72, 75, 86),
    "case0037": (3, 9, 12, 20, 26, 31, 32, 39, 44, 57, 61, 78, 85),
    "case0039": (18, 27, 42, 45, 47, 55, 68, 74, 88),
    "case0040": (3, 26, 29, 31, 37, 76, 90, 92, 96, 98, 108, 113, 117, 118, 159, 167, 173),
}
# UA-MT: data/test.list; H-SAM tests on the same 20
_LA_TEST = (
    "UPT6DX9IQY9JAZ7HJKA7", "UTBUJIWZMKP64E3N73YC", "ULHWPWKKLTE921LQLH1P", "V0MZOWJ6MU3RMRCV9EXR",
    "VDOF02M8ZHEAADFMS6NP", "VG4C826RAAKVMV9BQLVD", "VIXBEFTNVHZWKAKURJBN", "VQ2L3WM8KEVF6L44E6G9",
    "WBG9WYZ1B25WDT5WAT8T", "WMDG2EFA6L2SNDZXIRU0", "WNPKE0W404QE9AELX1LR", "WSJB9P4JCXUVHBOYFVWL",
    "WW8F5CO4S4K5IM5Z7EXX", "X18LU5AOBNNDMLTA0JZL", "XYDLYJ5CS19FDBVLJIPI", "Y7ZU0B2APPF54WG6PDMF",
    "YDKD1HVHSME6NVMA8I39", "Z9GMG63CJLL0VW893BB1", "ZIJLJAVQV3FJ6JSQOH1E", "ZQPMJ4XEC5A4BISD45P1",
)  # fmt: skip
_ORGANS = (
    "spleen", "right kidney", "left kidney", "gallbladder", "liver", "stomach", "aorta", "pancreas",
)  # fmt: skip

SPLITS = {
    "synapse": Split(
        modality="CT",
        class_names=("background", *_ORGANS),
        training=tuple(_SYNAPSE_TRAINING),
        validation=_SYNAPSE_TEST,
        num_slices=_SYNAPSE_TRAINING,
    ),
    "synapse_10pct": Split(
        modality="CT",
        class_names=("background", *_ORGANS),
        training=tuple(_SYNAPSE_TRAINING),
        validation=_SYNAPSE_TEST,
        slices=_SYNAPSE_10PCT,
        num_slices=_SYNAPSE_TRAINING,
    ),
    "la_4": Split(
        modality="MR",
        class_names=("background", "left atrium"),
        training=(
            "06SR5RBREL16DQ6M8LWS",
            "0RZDK210BSMWAA6467LU",
            "1D7CUD1955YZPGK8XHJX",
            "1GU15S0GJ6PFNARO469W",
        ),  # H-SAM: lists_LA_4
        validation=_LA_TEST,
    ),
    "promise12_3": Split(
        modality="MR",
        class_names=("background", "prostate"),
        training=("Case05", "Case14", "Case29"),  # H-SAM: lists_PROMISE_3/train.txt
        validation=("Case12", "Case13", "Case16", "Case20", "Case23", "Case28", "Case34", "Case35", "Case43", "Case49"),
    ),
}
