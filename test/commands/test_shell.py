# SPDX-License-Identifier: Apache-2.0
"""The command line in a shell: completion in bash and zsh, --json, --debug."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from sqsegv3_ros.cli import VERBS, main

needs_zsh = pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh")


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The completion script of each shell."""
    pytest.importorskip("shtab", reason="needs shtab: pip install 'sqsegv3_ros[tools]'")
    folder = tmp_path_factory.mktemp("completion")
    paths = {}
    python_path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": python_path}
    for shell in ("bash", "zsh"):
        command = (sys.executable, "-m", "sqsegv3_ros.cli", "--print-completion", shell)
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        paths[shell] = folder / ("_sqsegv3" if shell == "zsh" else "sqsegv3.bash")
        paths[shell].write_text(done.stdout)
    return paths


def bash(script: Path, folder: Path, *words: str) -> set[str]:
    """What bash offers for the last word."""
    program = (
        'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}\n'
        '_shtab_sqsegv3; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    command = ("bash", "--norc", "-c", program, "bash", str(script), "sqsegv3", *words)
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def zsh(script: Path, folder: Path, line: str, last: str) -> str:
    """What zsh shows after a line and two tabs, up to the last entry; in a terminal, with the script in its fpath."""
    program = (
        "zmodload zsh/zpty; zpty z zsh -f -i; "
        "zpty -w z 'PS1=; fpath=(SCRIPTS $fpath); autoload -Uz compinit && compinit -u -D; echo is ready'; "
        "zpty -r -m z found '*\nis ready*'; "
        'zpty -n -w z "$1"$\'\\t\\t\'; zpty -r -m z found "*$2*"; print -r -- $found; zpty -d z'
    ).replace("SCRIPTS", str(script.parent))
    command = ("zsh", "-f", "-c", program, "zsh", line, last)
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=60)
    return done.stdout


def test_bash_completes_verbs_options_choices_and_files(scripts: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "drive.pcd").write_text("")
    script = scripts["bash"]
    assert bash(script, tmp_path, "") == set(VERBS)
    assert bash(script, tmp_path, "re") == {"render", "report", "replay"}
    assert {"--format", "--fov", "--force"} == bash(script, tmp_path, "render", "--fo")
    assert bash(script, tmp_path, "render", "--format", "n") == {"nuscenes", "npy"}
    assert bash(script, tmp_path, "render", "dr") == {"drive.pcd"}
    assert bash(script, tmp_path, "view", "--save", "d") == {"drive.pcd"}
    assert bash(script, tmp_path, "label", "--debu") == {"--debug"}


def test_bash_completes_the_settings_of_training(scripts: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("lightning", reason="needs lightning: pip install 'sqsegv3_ros[train]'")
    (tmp_path / "drive.yaml").write_text("")
    script = scripts["bash"]
    assert {"--data.root", "--run.output", "--trainer.max_epochs", "--config"} < bash(script, tmp_path, "train", "--")
    assert bash(script, tmp_path, "train", "--run.re") == {"--run.resume"}
    assert bash(script, tmp_path, "train", "--debug", "--run.resume", "") == {"true", "false"}
    assert bash(script, tmp_path, "train", "--config", "d") == {"drive.yaml"}
    assert "--data.root" in bash(script, tmp_path, "train", "--print_config", "--data.ro")
    assert bash(script, tmp_path, "train", "--debu") == {"--debug"}


@needs_zsh
def test_zsh_completes_verbs_and_options(scripts: dict[str, Path], tmp_path: Path) -> None:
    shown = zsh(scripts["zsh"], tmp_path, "sqsegv3 re", "report")
    assert all(verb in shown for verb in ("render", "report", "replay")), shown
    shown = zsh(scripts["zsh"], tmp_path, "sqsegv3 train --run.re", "--run.resume")
    assert "--run.resume" in shown or importlib.util.find_spec("lightning") is None, shown
    shown = zsh(scripts["zsh"], tmp_path, "sqsegv3 render --fo", "--fov")
    assert all(option in shown for option in ("--format", "--fov", "--force")), shown


def test_without_shtab_the_command_that_installs_it_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["--print-completion", "bash"]) == 2
    assert "sqsegv3: shell completion needs the Python package 'shtab': pip install" in capsys.readouterr().err


def test_without_lightning_only_the_options_of_train_are_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("shtab", reason="needs shtab: pip install 'sqsegv3_ros[tools]'")
    monkeypatch.setitem(sys.modules, "lightning.pytorch", None)
    assert main(["--print-completion", "bash"]) == 0
    said = capsys.readouterr()
    assert "--fov" in said.out and "--run.output" not in said.out
    assert "no completion of the options of train: training needs the Python package 'lightning" in said.err


def test_json_goes_to_a_file_beside_the_text_or_to_standard_output_instead(
    small_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(small_model), "--json", "-"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["name"] == "small-random"
    assert main(["inspect", str(small_model), "--json", str(tmp_path / "new" / "a.json")]) == 0
    assert "small-random" in capsys.readouterr().out
    assert json.loads((tmp_path / "new" / "a.json").read_text()) == printed


@pytest.mark.parametrize("verb", sorted(VERBS.keys() - {"demo", "render", "report", "train"}))
def test_every_verb_that_measures_or_counts_has_json(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    assert "--json FILE|-" in capsys.readouterr().out


def test_debug_shows_the_traceback_and_keeps_message_and_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["render", str(tmp_path / "nowhere.bin"), "--output", str(tmp_path / "a.png")]
    assert main(arguments) == 2
    short = capsys.readouterr().err
    assert "Traceback" not in short
    assert main([*arguments, "--debug"]) == 2
    long = capsys.readouterr().err
    assert long.startswith("Traceback") and "find_point_files" in long and long.endswith(short)


def test_debug_shows_the_traceback_of_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("lightning", reason="needs lightning: pip install 'sqsegv3_ros[train]'")
    output = tmp_path / "run"
    arguments = ["train", "--data.root", str(tmp_path / "nowhere"), "--run.output", str(output)]
    assert main(arguments) == 2
    short = capsys.readouterr().err
    assert "Traceback" not in short and "nowhere" in short.splitlines()[-1]
    assert main([*arguments, "--debug"]) == 2
    long = capsys.readouterr().err
    assert "Traceback" in long and "UserError" in long and long.splitlines()[-1] == short.splitlines()[-1]
    assert "\ndebug:" not in (output / "config.yaml").read_text()  # no setting of the run
