# SPDX-License-Identifier: Apache-2.0
"""`make test-cuda` on a machine without a GPU, and its table, made on the CPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cuda
import pytest
import torch
from conftest import ROOT, make_model


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without CUDA")
def test_without_a_gpu_nothing_passes_as_tested(tmp_path: Path) -> None:
    table = tmp_path / "cuda.md"
    done = subprocess.run([sys.executable, ROOT / "test/cuda.py", table], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0 and "no CUDA device" in done.stderr
    assert not table.exists()


def test_the_table_has_a_row_for_a_case(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model.pt", width=64)
    cases = [{"model": model, "device": "cpu", "backend": "torch", "precision": "bf16"}]
    (line,) = cuda.measured(cases, repeat=1).splitlines()[2:]
    row = [cell.strip() for cell in line.strip("|").split("|")]
    assert row[:4] == ["small-random", "64 x 64", "bf16", "no"]
    network, _, project, classify, knn, scan = (float(cell) for cell in row[4:])
    assert network > 0 and scan > network
    assert scan > max(project, classify, knn)


def test_tests_that_need_a_gpu_are_marked() -> None:
    """Tests that are skipped without the marker `cuda` would never run by `make test-cuda`."""
    sources = {p: p.read_text() for p in (ROOT / "test").rglob("test_*.py") if p.name != "test_cuda.py"}
    assert any("@pytest.mark.cuda" in source for source in sources.values())
    unmarked = [path.name for path, source in sources.items() if "skipif(not torch.cuda.is_available()" in source]
    assert not unmarked, f"use @pytest.mark.cuda in {unmarked}"
