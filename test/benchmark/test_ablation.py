# SPDX-License-Identifier: Apache-2.0
"""`sqsegv3 ablate`: counted work, timings, the paper's numbers, and training commands that run."""

from __future__ import annotations

import functools
import json
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from sqsegv3_ros.benchmark.ablation import latency
from sqsegv3_ros.benchmark.ablation.variants import VARIANTS
from sqsegv3_ros.benchmark.work import count
from sqsegv3_ros.cli import main
from sqsegv3_ros.inference.backends import Runtime
from sqsegv3_ros.network.config import NetworkConfig


@pytest.mark.parametrize(
    ("config", "width", "parameters", "giga_macs"),
    [(NetworkConfig.ssgv3_21(), 2048, 9_247_140, 196.486), (NetworkConfig.ssgv3_53(), 512, 25_959_588, 130.508)],
)
def test_work_of_the_released_networks_is_what_was_counted_by_hand(
    config: NetworkConfig, width: int, parameters: int, giga_macs: float
) -> None:
    work = count(config, 64, width)
    assert work.parameters == parameters
    assert work.macs / 1e9 == pytest.approx(giga_macs, abs=6e-4)


def test_products_are_features_times_factors() -> None:
    """Blocks 1, 1, 2, 2, 1 at 32, 64, 128, 256, 256 channels and full, 1/2, 1/4, 1/8, 1/8 width, by hand."""
    features = 64 * (32 * 512 + 64 * 256 + 2 * 128 * 128 + 3 * 256 * 64)
    assert count(NetworkConfig(), 64, 512).products == 9 * features
    assert count(NetworkConfig(block="sac-is"), 64, 512).products == features


def test_squeezing_counts_once_for_an_image_and_not_for_each_pixel() -> None:
    plain, squeezing = (count(NetworkConfig(block=block), 64, 512) for block in ("conv", "se"))
    blocks = [(32, 1), (64, 1), (128, 2), (256, 3)]
    assert squeezing.macs - plain.macs == sum(n * 2 * c * (c // 16) for c, n in blocks)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """The JSON of a run that times small blocks and small networks, and its folder."""
    folder = tmp_path_factory.mktemp("ablate")
    measure_exported = functools.partial(latency.measure_exported, height=4, width=32)

    def measure_small(networks: Mapping[str, NetworkConfig], runtime: Runtime, repeat: int) -> Any:
        small = {name: replace(config.scaled(1 / 8), blocks=(1,) * 5) for name, config in networks.items()}
        return measure_exported(small, runtime, repeat)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "measure_blocks", functools.partial(latency.measure_blocks, height=4, width=32))
        patch.setattr(latency, "measure_exported", measure_small)
        options = ["--width", "512", "--repeat", "2", "--json", folder / "a.json", "--markdown", folder / "a.md"]
        assert main(["ablate", *map(str, options), "--png", str(folder / "a.png")]) == 0
    return json.loads((folder / "a.json").read_text()), folder


def test_extra_work_over_the_standard_convolution_is_as_expected(measured: Any) -> None:
    rows = {row["name"]: row for row in measured[0]["variants"]}
    expected = {"sac-s": (0.014, 0.029), "sac-is": (2.17, 2.74), "sac-sk": (0.122, 0.261), "sac-isk": (19.55, 24.64)}
    for name, (parameters, macs) in expected.items():
        assert rows[name]["extra_parameters_percent"] == pytest.approx(parameters, abs=0.006), name
        assert rows[name]["extra_macs_percent"] == pytest.approx(macs, abs=0.006), name


def test_every_block_and_every_exported_network_is_timed(measured: Any) -> None:
    rows = {row["name"]: row for row in measured[0]["variants"]}
    assert {name for name, row in rows.items() if "block" not in row} == {"rangenet"}
    for name, row in rows.items():
        for times in (row.get("block"), row["exported_network"]):
            assert times is None or 0 < times["min_ms"] <= times["median_ms"], name


def test_tables_and_picture_stand_beside_the_papers_numbers(measured: Any) -> None:
    _, folder = measured
    lines = [line for line in (folder / "a.md").read_text().splitlines() if line.startswith("| SAC-ISK, 7x7")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert len(cells) == 2
    assert cells[0][2:4] == ["19.55", "14.9"] and cells[0][5] == "24.64" and cells[0][7] == "24.8"
    assert cells[1][5:7] == ["0.52", "1.73"]
    assert (folder / "a.png").read_bytes().startswith(b"\x89PNG")


def test_every_row_of_the_papers_tables_is_there_once() -> None:
    rows = [(table, called) for variant in VARIANTS for table, called in variant.tables.items()]
    assert len(rows) == len(set(rows))
    assert {table: sum(t == table for t, _ in rows) for table in (3, 4, 5)} == {3: 9, 4: 5, 5: 4}
    assert len({(v.network(), v.multi_layer) for v in VARIANTS}) == len(VARIANTS)


def test_the_commands_train_the_row_that_they_are_named_after(capsys: pytest.CaptureFixture[str]) -> None:
    yaml = pytest.importorskip("yaml")
    for package in ("lightning", "torchmetrics", "jsonargparse"):
        pytest.importorskip(package, reason="needs lightning: pip install 'sqsegv3_ros[train]'")
    config = str(ROOT / "config/train/ablation.yaml")
    assert main(["ablate", "--commands", "--seeds", "4", "7", "--config", config, "--root", "my data"]) == 0
    commands = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert len(commands) == 2 * len(VARIANTS)
    folders = [command[command.index("--run.output") + 1] for command in commands]
    assert len(set(folders)) == len(folders)
    options = {command[command.index("--model.name") + 1]: command for command in commands[len(VARIANTS) :]}
    assert list(options) == [variant.name for variant in VARIANTS]
    kernel = options["sac-isk-1x1"].index("--model.network.attention_kernel") + 1
    assert options["sac-isk-1x1"][kernel] == "1"

    assert options["rangenet"][:2] == ["sqsegv3", "train"]
    assert main([*options["rangenet"][1:], "--print_config"]) == 0
    settings = yaml.safe_load(capsys.readouterr().out)
    expected = NetworkConfig.rangenet_21().scaled(0.25).to_dict() | {"azimuth_padding": "circular", "bn_momentum": 0.05}
    assert settings["model"]["network"] == expected
    assert settings["model"]["loss"]["heads"] == [1.0, 0.0, 0.0, 0.0, 0.0]
    assert (settings["seed_everything"], settings["data"]["root"]) == (7, "my data")
    assert settings["run"]["output"] == "runs/ablation/rangenet-seed7"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--width", "48"), "--width must be a multiple of 32"),
        (("--repeat", "-1"), "--repeat must be 0 or more"),
        (("--device", "abacus"), "device must be one of"),
        (("--network", "34"), "invalid choice"),
    ],
)
def test_wrong_use_is_said(options: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ablate", *options]) == 2
    assert message in capsys.readouterr().err
