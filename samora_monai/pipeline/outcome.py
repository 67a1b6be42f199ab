"""What a pipeline has made: the Dice of each class, the files, and the command that uses them."""

from __future__ import annotations

import csv
from pathlib import Path

from samora_monai.pipeline.bundle_process import quoted
from samora_monai.pipeline.stages import PREDICTIONS, Stage

SYSTEMS = {"evaluation": "SAMora", "samed_evaluation": "SAMed"}


def outcome(stages: list[Stage], run: Path) -> str:
    """Text about the results of finished stages."""
    scorings = {SYSTEMS[stage.name]: stage for stage in stages if stage.name in SYSTEMS}
    samora = scorings["SAMora"]
    count = len(samora.scans) // 2  # with their labels
    lines = ["", "Dice of one scan" if count == 1 else f"Dice, mean of {count} scans"]
    lines.append(dice_table({system: stage.results[0] for system, stage in scorings.items()}))
    lines += [samora.note] if samora.note else []
    files = {"report": samora.results[1], "model": run / "samora" / "models" / "model.pt"}
    if stages[-1].name == "prediction":
        files["labels"] = run / PREDICTIONS
    lines += ["", *(f"{name:<7} {path}" for name, path in files.items())]
    lines += ["", "to segment other scans:", f"$ samora predict {quoted(str(run))} SCANS OUT"]
    return "\n".join(lines)


def dice_table(summaries: dict[str, Path]) -> str:
    """The mean Dice of each class over the evaluated scans.

    Args:
        summaries: the `summary.csv` of an evaluation, by the name of the system.
    """
    rows: dict[str, dict[str, str]] = {}
    for system, summary in summaries.items():
        with open(summary, newline="", encoding="utf-8") as file:
            table = {row["name"]: row for row in csv.DictReader(file)}
        rows[system] = {name: row["dice"] for name, row in table.items()}
    columns = list(next(iter(rows.values())))
    lines = ["  ".join([" " * 6, *columns])]
    for system, dice in rows.items():
        cells = (f"{float(dice[column] or 'nan'):{max(len(column), 5)}.3f}" for column in columns)
        lines.append("  ".join([f"{system:<6}", *cells]))
    return "\n".join(lines)
