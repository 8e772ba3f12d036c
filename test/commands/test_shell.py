# SPDX-License-Identifier: Apache-2.0
"""The command line in a shell: completion in bash and zsh, --json, --debug."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from conftest import ROOT

from sqsegv3_ros.cli import COMMANDS, main

needs_zsh = pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh")


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The completion script of each shell."""
    pytest.importorskip("shtab", reason="needs shtab: pip install 'sqsegv3_ros[tools]'")
    folder = tmp_path_factory.mktemp("completion")
    paths = {}
    for shell in ("bash", "zsh"):
        paths[shell] = folder / ("_sqsegv3" if shell == "zsh" else "sqsegv3.bash")
        with paths[shell].open("w") as script, redirect_stdout(script):
            assert main(["--print-completion", shell]) == 0
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


def test_bash_completes_commands_options_choices_and_files(scripts: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "drive.pcd").write_text("")
    script = scripts["bash"]
    assert bash(script, tmp_path, "") == set(COMMANDS)
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
def test_zsh_completes_commands_and_options(scripts: dict[str, Path], tmp_path: Path) -> None:
    shown = zsh(scripts["zsh"], tmp_path, "sqsegv3 re", "report")
    assert all(command in shown for command in ("render", "report", "replay")), shown
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


def test_json_is_refused_before_the_work_if_it_would_replace_an_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scan, model = tmp_path / "a.bin", tmp_path / "mine.pt"
    metadata, recording = tmp_path / "OS-1_42.json", tmp_path / "OS-1_42_drive.pcap"
    for file in (scan, model, metadata, recording):
        file.write_bytes(b"input")
    label = ("label", "--output", str(tmp_path / "out"))
    for arguments, words in (
        (("inspect", "--json", str(model)), f"--json must be - or a file that ends in .json, found '{model}'"),
        ((*label, "--json", str(scan), str(scan)), f"found '{scan}'"),
        ((*label, "--json", str(metadata), str(recording)), "may be the metadata of a .pcap beside it"),
        (("inspect", "--json", str(scan / "new" / "a.json")), f"{scan} is not a writable folder"),
    ):
        assert main(arguments) == 2
        assert words in capsys.readouterr().err
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == dict.fromkeys(
        ("a.bin", "mine.pt", "OS-1_42.json", "OS-1_42_drive.pcap"), b"input"
    )


def test_json_replaces_earlier_results(small_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "a.json"
    for _ in range(2):
        assert main(["inspect", str(small_model), "--json", str(results)]) == 0
    assert json.loads(results.read_text())["name"] == "small-random"


@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - {"demo", "render", "report", "train"}))
def test_every_command_that_measures_or_counts_has_json(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    assert "--json FILE|-" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["label", "view"])
def test_help_says_that_intensity_parameters_do_not_apply_to_files(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--help"]) == 0
    assert "intensity settings apply to bags only" in " ".join(capsys.readouterr().out.split())


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


def test_debug_shows_the_traceback_of_training(tmp_path: Path) -> None:
    pytest.importorskip("lightning", reason="needs lightning: pip install 'sqsegv3_ros[train]'")
    # in a process of its own: Lightning logs to the standard error that it was imported with
    program = "import sys; from sqsegv3_ros.cli import main as m; a = sys.argv[1:]; print(m(a), m([*a, '--debug']))"
    arguments = ("train", "--data.root", str(tmp_path / "nowhere"), "--run.output", str(tmp_path / "run"))
    done = subprocess.run((sys.executable, "-c", program, *arguments), capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.split() == ["2", "2"], done.stderr
    short, _, long = done.stderr.partition("Traceback")
    assert "UserError" in long
    first, second = (
        [line for line in text.splitlines() if line.startswith("sqsegv3 train: ")] for text in (short, long)
    )
    assert len(first) == 1 and "nowhere" in first[0] and second == first
    assert "\ndebug:" not in (tmp_path / "run" / "config.yaml").read_text()  # no setting of the run
