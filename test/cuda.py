# SPDX-License-Identifier: Apache-2.0
"""`make test-cuda`: all CUDA tests, then a table of what a scan costs on the GPU of this machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from sqsegv3_ros.benchmark.measure import Options, measure
from sqsegv3_ros.benchmark.tables import table
from sqsegv3_ros.inference.model_file import find_model

ROOT = Path(__file__).resolve().parent.parent


def main(output: Path) -> int:
    """Test and measure. Returns 1 if there is no GPU, or the exit code of pytest if a test fails."""
    import torch

    if not torch.cuda.is_available():
        print("no CUDA device found: nothing was tested or measured", file=sys.stderr)
        return 1
    if code := pytest.main(["--rootdir", str(ROOT), "-m", "cuda", str(ROOT / "test")]):
        return int(code)
    cases = [
        {"precision": precision, "cuda_graph": cuda_graph, "device": "cuda", **network}
        for network in ({"network": "21"}, {"network": "53"}, {"model": find_model("default")})
        for precision in ("fp32", "fp16")
        for cuda_graph in (False, True)
    ]
    text = f"{torch.cuda.get_device_name()}, torch {torch.__version__}\n\n{measured(cases, repeat=50)}\n"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text)
    print(f"{text}\nwritten to {output}")
    return 0


def measured(cases: list[dict[str, Any]], repeat: int) -> str:
    """A Markdown table with a row for each case, the fields of `Options`."""
    rows = []
    for case in cases:
        result = measure(Options(**case, repeat=repeat))
        stages = result["stages"]
        times = [stages["network"]["median_ms"], stages["network"]["p95_ms"]]
        times += [stages[stage]["median_ms"] for stage in ("project", "classify", "knn", "total")]
        model = result["model"] if case.get("model") else case["network"]
        size = f"{result['height']} x {result['width']}"
        graph = "yes" if result["cuda_graph"] else "no"
        rows.append([model, size, result["precision"], graph, *(f"{t:.2f}" for t in times)])
        print(*rows[-1], sep="  ", flush=True)
    header = ["model", "image", "precision", "CUDA graph", "network ms", "p95 ms", "project ms", "classify ms"]
    return table([*header, "KNN ms", "scan ms"], rows)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
