# SPDX-License-Identifier: Apache-2.0
"""`sqsegv3 ablate --collect`: the tables that finished runs make."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sqsegv3_ros.cli import main


def write_run(runs: Path, name: str, mious: list[float], step: int = 160) -> None:
    """A run's folder as training leaves it, with so many validations; accuracy is half a point above 50 + mIoU."""
    folder = runs / name
    folder.mkdir(parents=True)
    entries = [
        {"step": step * (i + 1) // len(mious), "val/miou": miou / 100, "val/accuracy": 0.5 + miou / 100}
        for i, miou in enumerate(mious)
    ]
    (folder / "history.jsonl").write_text("".join(f"{json.dumps(entry)}\n" for entry in entries))


def cells(table: str, name: str) -> list[str]:
    """The cells of the first row of a network."""
    line = next(line for line in table.splitlines() if f" `{name}` " in line)
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_mean_spread_and_difference_by_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, (plain, adaptive) in enumerate([(10.0, 11.0), (12.0, 14.0), (11.0, 14.0)]):
        write_run(tmp_path, f"conv-seed{seed}", [30.0, plain])  # the last validation counts, not the best
        write_run(tmp_path, f"sac-isk-seed{seed}", [5.0, adaptive])
    assert main(["ablate", "--collect", "--runs", str(tmp_path), "--json", str(tmp_path / "a.json")]) == 0
    said = capsys.readouterr().out
    assert cells(said, "conv")[2:6] == ["3", "11.00 ± 1.00", "", "61.00 ± 1.00"]
    # differences 1, 2, 3 of the same seed: the spread is theirs, not that of the two means
    assert cells(said, "sac-isk")[2:5] == ["3", "13.00 ± 1.73", "+2.00 ± 1.00"]
    assert cells(said, "sac-isk")[6:] == ["46.3", "+2.3"]
    assert [line for line in said.splitlines() if line.startswith("Variants without a run: sac-s, ")]
    found = {row["name"]: row for row in json.loads((tmp_path / "a.json").read_text())["variants"]}
    assert found["sac-isk"]["miou_over_baseline"]["each"] == [1.0, 2.0, 3.0]
    assert found["conv"]["steps"] == [160]


def test_tables_are_in_the_papers_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("conv", "sac-isk", "sac-isk-1x1", "sac-isk-3x3", "rangenet", "conv-last-head"):
        write_run(tmp_path, f"{name}-seed7", [10.0])
    assert main(["ablate", "--collect", "--runs", str(tmp_path)]) == 0
    kernels, shapes = capsys.readouterr().out.split("Table 4")[1].split("Table 5")
    rows = [[line.split("|")[1].strip() for line in part.splitlines() if "`" in line] for part in (kernels, shapes)]
    assert rows == [
        ["baseline", "1x1", "3x3", "7x7"],
        ["Baseline", "+ DS removal", "+ Multi-layer loss", "+ SAC-ISK"],
    ]


def test_a_seed_without_its_baseline_and_runs_of_other_lengths_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path, "conv-seed0", [10.0], step=100)
    write_run(tmp_path, "se-seed1", [12.0], step=160)
    write_run(tmp_path, "mine-seed0", [50.0])  # no row of the paper
    assert main(["ablate", "--collect", "--runs", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert cells(said, "se")[2:5] == ["1", "12.00", ""]
    assert "different steps (100, 160)" in said
    assert "mine" not in said


def test_a_folder_without_runs_and_a_broken_history_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ablate", "--collect", "--runs", str(tmp_path / "nowhere")]) == 2
    assert "nowhere is not a folder" in capsys.readouterr().err
    assert main(["ablate", "--collect", "--runs", str(tmp_path)]) == 2
    assert "has no run with a validation" in capsys.readouterr().err
    write_run(tmp_path, "conv-seed0", [])
    assert main(["ablate", "--collect", "--runs", str(tmp_path)]) == 2
    assert "conv-seed0/history.jsonl: its last line is not the validation of a run" in capsys.readouterr().err
