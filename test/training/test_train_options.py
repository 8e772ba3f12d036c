# SPDX-License-Identifier: Apache-2.0
"""The options of `sqsegv3 train`: every one is described, and configurations share a base file."""

from __future__ import annotations

import re

import pytest
from conftest import ROOT

from sqsegv3_ros.cli import main
from sqsegv3_ros.errors import UserError
from sqsegv3_ros.training.run import TrainCLI

CONFIGS = sorted((ROOT / "config" / "train").glob("*.yaml"))


def parse(*options):
    return TrainCLI([*options, "--data.root", "/nowhere"]).config


def test_help_describes_every_option_of_the_package(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["train", "--help"]) == 0
    text = capsys.readouterr().out
    entries = re.findall(r"^  --((?:model|data|run)\.\S+) \S+(.*?)(?=^ {2}\S|^\S|\Z)", text, re.DOTALL | re.MULTILINE)
    assert len(entries) > 100
    undescribed = {name for name, rest in entries if not rest.split("(type:")[0].strip()}
    assert not undescribed, undescribed


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_configuration_that_ships_can_be_read(path, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)  # ssgv3_kitti.yaml names models/default.pt
    cli = TrainCLI(["--config", str(path), "--data.root", str(tmp_path), "--run.output", str(tmp_path)])
    assert cli.datamodule.projection == cli.model.projection
    parameters = sum(p.numel() for p in cli.model.network.parameters())
    official = {"ssgv3_21": 9_247_140, "ssgv3_21_512": 9_247_140, "ssgv3_53": 25_959_588}
    assert parameters == official.get(path.stem, parameters) and parameters < 26_000_000


def test_a_configuration_changes_single_values_of_its_base_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base = parse("--config", str(ROOT / "config/train/small_base.yaml"))
    (tmp_path / "own.yaml").write_text(
        f"config: {ROOT}/config/train/small_base.yaml\nmodel.optimizer.lr: 0.5\ndata.augmentation.scale.low: 0.9\n"
    )
    own = parse("--config", "own.yaml", "--trainer.max_epochs", "7")
    assert (own.model.optimizer.lr, own.data.augmentation.scale.low, own.trainer.max_epochs) == (0.5, 0.9, 7)
    assert own.model.optimizer.schedule == base.model.optimizer.schedule == "one-cycle"
    assert own.data.augmentation.scale.high == base.data.augmentation.scale.high == 1.05
    assert own.data.augmentation.yaw_deg == base.data.augmentation.yaw_deg


def test_synchronised_batchnorm_on_cpus_is_refused(tmp_path):
    options = ["--data.root", str(tmp_path), "--trainer.accelerator", "cpu", "--trainer.devices", "2"]
    TrainCLI([*options, "--trainer.sync_batchnorm", "false"])
    with pytest.raises(UserError, match=r"add --trainer\.sync_batchnorm false"):
        TrainCLI([*options, "--trainer.sync_batchnorm", "true"])
