"""Tables and plots of a grid.

    python -m benchmarks.fewshot.table OUT

Reads OUT/results.csv, prints the tables, and writes OUT/tables.md, OUT/dice_over_scans.png and OUT/dice_over_steps.png.
Numbers are means over seeds, `mean ± half of the 95 % interval (seeds)`, or `mean [lower, higher] (2)` for two seeds.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.fewshot.grid import CONVERGING, REFERENCE, SYSTEMS, ablations
from benchmarks.fewshot.plots import plot_scans, plot_steps
from benchmarks.fewshot.results import read_rows
from benchmarks.fewshot.spread import Estimate, estimate
from samora_monai.errors import InputError, MissingFileError
from samora_monai.replacing import replacing

NOT_RUN = "not run"
ABLATIONS = ablations("tiny")  # the titles are the same for every encoder
Rows = Sequence[Mapping[str, str]]


def select(rows: Rows, column: str = "dice mean", **wanted: str | int | float) -> dict[int, float]:
    """`column` by seed, of the rows whose columns have the values `wanted`; Dice is in percent."""
    scale = 100 if column.startswith("dice") else 1
    found = [row for row in rows if all(_equal(row[name], value) for name, value in wanted.items())]
    return {int(row["seed"]): scale * float(row[column]) for row in found}


def systems_table(rows: Rows) -> list[list[str]]:
    """Mean Dice and HD95 of each system for each number of labelled scans, after all steps."""
    counts = sorted({int(row["labeled"]) for row in rows if not row["ablation"]})
    header = ["system", *(f"Dice, {_scans(n)}" for n in counts), *(f"HD95, {_scans(n)}" for n in counts)]
    table = [header]
    for name, row in SYSTEMS.items():
        cells = [
            _text(select(rows, column, system=name, ablation="", labeled=n, fraction=1))
            for column in ("dice mean", "hd95_voxels")
            for n in counts
        ]
        table.append([row.title, *cells])
    return table


def classes_table(rows: Rows) -> list[list[str]]:
    """Dice of each class for each system and number of labelled scans."""
    columns = [name for name in (rows[0] if rows else ()) if name.startswith("dice ") and name != "dice mean"]
    table = [["system", "labelled", *(name.removeprefix("dice ") for name in columns)]]
    for name, row in SYSTEMS.items():
        for n in sorted({int(r["labeled"]) for r in rows if r["system"] == name and not r["ablation"]}):
            which = {"system": name, "ablation": "", "labeled": n, "fraction": 1}
            table.append([row.title, str(n), *(_text(select(rows, column, **which)) for column in columns)])
    return table


def ablations_table(rows: Rows) -> list[list[str]]:
    """Mean Dice of each ablation and its difference from the reference with the same seed, for each number of scans."""
    table = [["SAMora"], ["as it is"], *([row.title] for row in ABLATIONS.values())]
    for labeled in sorted({int(row["labeled"]) for row in rows if row["ablation"]}):
        reference = select(rows, system=REFERENCE, ablation="", labeled=labeled, fraction=1)
        table[0] += [f"Dice, {_scans(labeled)}", "difference"]
        table[1] += [_text(reference), ""]
        for line, name in zip(table[2:], ABLATIONS, strict=True):
            dice = select(rows, system=REFERENCE, ablation=name, labeled=labeled, fraction=1)
            both = sorted(set(dice) & set(reference))
            difference = estimate([dice[seed] - reference[seed] for seed in both])
            line += [_text(dice), difference.text(signed=True) if difference else ""]
    return table


def convergence(rows: Rows) -> dict[str, dict[float, Estimate]]:
    """Mean Dice of the converging systems by the fraction of the steps, for the most scans with which it is known."""
    lines: dict[str, dict[float, Estimate]] = {}
    for name in CONVERGING:
        own = [row for row in rows if row["system"] == name and not row["ablation"]]
        labeled = max((int(row["labeled"]) for row in own if float(row["fraction"]) < 1), default=0)
        own = [row for row in own if int(row["labeled"]) == labeled]
        points = {part: estimate(list(select(own, fraction=part).values())) for part in _fractions(own)}
        lines[name] = {part: point for part, point in points.items() if point is not None}
    return lines


def convergence_table(rows: Rows) -> list[list[str]]:
    """The same, and the fraction of the steps after which a system reaches SAMed's final Dice."""
    lines = convergence(rows)
    parts = sorted({part for line in lines.values() for part in line})
    goal = lines["samed"].get(1.0)
    table = [["system", *(f"{100 * part:g} %" for part in parts), "SAMed's last Dice after"]]
    for name, line in lines.items():
        reached = [part for part, point in line.items() if goal and point.mean >= goal.mean]
        cells = [line[part].text() if part in line else NOT_RUN for part in parts]
        table.append([SYSTEMS[name].title, *cells, f"{100 * min(reached):g} %" if reached else "never"])
    return table


def costs_table(rows: Rows) -> list[list[str]]:
    """Wall time and processor time of a training, and the peak memory of its largest process."""
    table = [["row", "minutes", "core minutes", "peak memory, GB"]]
    for name, row in (SYSTEMS | ABLATIONS).items():
        own = [r for r in rows if (r["ablation"] or r["system"]) == name and float(r["fraction"]) == 1]
        if own:
            means = [sum(float(r[column]) for r in own) / len(own) for column in ("seconds", "cpu_seconds")]
            peak = max(float(r["memory_mb"]) for r in own)
            table.append([row.title, *(f"{mean / 60:.1f}" for mean in means), f"{peak / 1000:.2f}"])
    return table


def markdown(table: Sequence[Sequence[str]]) -> str:
    """The table in Markdown; its first row is the header."""
    lines = [f"| {' | '.join(row)} |" for row in table]
    return "\n".join([lines[0], "|" + "---|" * len(table[0]), *lines[1:]])


def report(rows: Rows) -> str:
    """All tables."""
    parts = {
        "Systems": systems_table(rows),
        "Ablations": ablations_table(rows),
        "Convergence": convergence_table(rows),
        "Classes": classes_table(rows),
        "Cost of a training": costs_table(rows),
    }
    return "\n\n".join(f"## {title}\n\n{markdown(table)}" for title, table in parts.items()) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="--folder of benchmarks.fewshot.run")
    args = parser.parse_args()
    try:
        rows = read_rows(args.folder / "results.csv")
        if not rows:
            raise MissingFileError(f"'{args.folder / 'results.csv'}' has no results; run benchmarks.fewshot.run first")
    except InputError as error:
        raise SystemExit(f"error: {error}") from error
    text = report(rows)
    with replacing(args.folder / "tables.md") as unfinished:
        unfinished.write_text(text, encoding="utf-8")
    print(text)
    plot_scans(_over_scans(rows), args.folder / "dice_over_scans.png")
    lines = {SYSTEMS[name].title: line for name, line in convergence(rows).items() if line}
    plot_steps(lines, args.folder / "dice_over_steps.png")


def _over_scans(rows: Rows) -> dict[str, dict[float, Estimate]]:
    """Mean Dice of each system by the number of labelled scans."""
    lines = {}
    for name, row in SYSTEMS.items():
        own = [r for r in rows if r["system"] == name and not r["ablation"]]
        points = {float(n): estimate(list(select(own, labeled=n, fraction=1).values())) for n in _counts(own)}
        lines[row.title] = {n: point for n, point in points.items() if point is not None}
    return {title: line for title, line in lines.items() if line}


def _counts(rows: Rows) -> list[int]:
    return sorted({int(row["labeled"]) for row in rows})


def _fractions(rows: Rows) -> list[float]:
    return sorted({float(row["fraction"]) for row in rows})


def _text(values: Mapping[int, float]) -> str:
    found = estimate(list(values.values()))
    return found.text() if found else NOT_RUN


def _equal(text: str, value: str | int | float) -> bool:
    return text == value if isinstance(value, str) else float(text) == value


def _scans(count: int) -> str:
    return f"{count} scan" if count == 1 else f"{count} scans"


if __name__ == "__main__":
    main()
