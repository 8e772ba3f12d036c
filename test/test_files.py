# SPDX-License-Identifier: Apache-2.0
"""Files and folders are written completely or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sqsegv3_ros.errors import UserError
from sqsegv3_ros.files import atomic_output, expand_home, write_atomically


def write(path: Path, text: str, folder: bool) -> None:
    if folder:
        path.mkdir()
        path = path / "content"
    path.write_text(text)


def read(path: Path) -> str:
    return (path / "content" if path.is_dir() else path).read_text()


@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize("existing", [None, False, True])
def test_an_output_replaces_a_file_or_folder(tmp_path: Path, folder: bool, existing: bool | None) -> None:
    output = tmp_path / "deep" / "output"
    if existing is not None:
        output.parent.mkdir()
        write(output, "old", existing)
    with atomic_output(output) as draft:
        assert draft.name == "output" and not draft.exists()
        write(draft, "new", folder)
        assert existing is None or read(output) == "old"
    assert read(output) == "new" and output.is_dir() == folder
    assert list(output.parent.iterdir()) == [output]


@pytest.mark.parametrize("folder", [False, True])
def test_an_error_keeps_the_existing_output(tmp_path: Path, folder: bool) -> None:
    output = tmp_path / "output"
    write(output, "old", folder)
    with pytest.raises(RuntimeError), atomic_output(output) as draft:
        write(draft, "new", folder)
        raise RuntimeError
    assert read(output) == "old"
    assert list(tmp_path.iterdir()) == [output]


@pytest.mark.parametrize("failures", [1, 2])
def test_a_failed_rename_never_loses_the_existing_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    output, rename, failed = tmp_path / "output", Path.replace, []
    write(output, "old", True)

    def fail(source: Path, target: Path) -> Path:
        if target == output and len(failed) < failures:
            failed.append(source)
            raise OSError(5, "Input/output error")
        return rename(source, target)

    monkeypatch.setattr(Path, "replace", fail)
    with (
        pytest.raises(UserError, match=r"cannot write .*output: Input/output error") as error,
        atomic_output(output) as draft,
    ):
        write(draft, "new", True)
    assert len(failed) == failures
    copies = [path.read_text() for path in tmp_path.rglob("content")]
    if failures == 1:
        assert copies == ["old"] and read(output) == "old" and list(tmp_path.iterdir()) == [output]
    else:  # the output could not be restored either
        assert "old" in copies and read(Path(str(error.value).rpartition("its previous content is ")[2])) == "old"


@pytest.mark.skipif(os.name != "posix", reason="is about POSIX permissions")
def test_a_file_is_on_the_disk_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plain").write_bytes(b"x")
    calls, fsync, replace = [], os.fsync, os.replace

    def note_fsync(file: int) -> None:
        assert os.fstat(file).st_size == 3
        calls.append("fsync")
        fsync(file)

    def note_replace(source: str, target: Path) -> None:
        calls.append("replace")
        replace(source, target)

    def umask(mask: int) -> int:
        raise AssertionError("the umask belongs to all threads")

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    monkeypatch.setattr(os, "umask", umask)
    write_atomically(tmp_path / "file", b"abc")
    assert calls == ["fsync", "replace"] and (tmp_path / "file").read_bytes() == b"abc"
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.skipif(os.name != "posix", reason="is about POSIX folders")
def test_a_file_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot write"):
        write_atomically(tmp_path / "file/below.label", b"x")
    with pytest.raises(UserError, match="cannot write"), atomic_output(tmp_path / "file/below"):
        pass
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="cannot write"):
        write_atomically(tmp_path / "folder", b"x")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


def test_the_home_folder_is_expanded_and_an_unknown_user_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/robot")
    assert expand_home("~/maps/own.yaml") == Path("/home/robot/maps/own.yaml")
    assert expand_home("/maps/~own.yaml") == Path("/maps/~own.yaml")
    with pytest.raises(UserError, match="~nobody-here/own"):
        expand_home("~nobody-here/own.yaml")
