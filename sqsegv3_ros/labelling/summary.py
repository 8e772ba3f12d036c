# SPDX-License-Identifier: Apache-2.0
"""Summary of a run's manifests: what is done, what failed and why, class shares, and the inputs to look at first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from sqsegv3_ros.errors import UserError
from sqsegv3_ros.labelling.manifest import DONE, Record, read_manifest
from sqsegv3_ros.labelling.remote import fetch_file, is_remote
from sqsegv3_ros.labelling.workspace import Workspace, default_cache

FORMAT, FORMAT_VERSION = "sqsegv3-labelling-summary", 1
SHOWN = 10
PERSON = "person"


def summarize(manifests: Sequence[str]) -> dict[str, Any]:
    """Summarize the manifests of a run's shards.

    Args:
        manifests: Paths or URLs.

    Returns:
        The summary as plain JSON types, as `docs/archives.md` describes it.

    Raises:
        UserError: A manifest cannot be read, or the manifests are of different settings.
    """
    contents = [_read(manifest) for manifest in manifests]
    for manifest, content in zip(manifests, contents, strict=True):
        if content.settings != contents[0].settings:
            raise UserError(f"{manifest} and {manifests[0]} were written with different settings; summarize each alone")
    latest: dict[str, Record] = {}
    for content in contents:
        for record in content.records.values():
            other = latest.get(record.name)
            if other is None or record.finished >= other.finished:
                latest[record.name] = record
    records = list(latest.values())
    done = [record for record in records if record.status == DONE]
    counts: Counter[str] = Counter()
    for record in done:
        counts.update(record.class_counts)
    points = sum(counts.values())
    clouds = sum(record.clouds for record in done)
    work_s, span_s = sum(record.seconds for record in done), _span_s(done)
    confident = sorted((r for r in done if r.mean_confidence is not None), key=lambda r: r.mean_confidence or 0.0)
    people = sorted((r for r in done if r.class_counts.get(PERSON)), key=lambda r: -_persons(r))
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "settings": contents[0].settings,
        "inputs": len(records),
        "done": len(done),
        "not_labelled": len(records) - len(done),
        "failures": [
            {"reason": reason, "count": count, "inputs": [_failure(r) for r in records if r.reason == reason]}
            for reason, count in Counter(r.reason for r in records if r.status != DONE).most_common()
        ],
        "clouds": clouds,
        "skipped_clouds": sum(record.skipped_clouds for record in done),
        "points": points,
        "bytes": sum(record.size for record in done),
        "worker_hours": round(work_s / 3600, 3),
        "elapsed_hours": round(span_s / 3600, 3),
        "clouds_per_second": round(clouds / span_s, 2) if span_s else None,
        "hosts": dict(Counter(record.host for record in done).most_common()),
        "class_shares": {name: count / points for name, count in counts.most_common()},
        "lowest_confidence": [
            {"name": r.name, "input": r.input, "mean_confidence": r.mean_confidence} for r in confident[:SHOWN]
        ],
        "most_persons": [
            {"name": r.name, "input": r.input, "person_points_per_cloud": round(_persons(r), 1)} for r in people[:SHOWN]
        ],
    }


def format_summary(summary: Mapping[str, Any]) -> str:
    """Format a summary as text for a terminal."""
    rate = summary["clouds_per_second"]
    lines = [
        f"model          {summary['settings']['model']['name']}",
        f"inputs         {summary['inputs']}: {summary['done']} done, {summary['not_labelled']} not labelled",
        f"clouds         {summary['clouds']} labelled, {summary['skipped_clouds']} skipped",
        f"data           {summary['bytes'] / 1e9:.2f} GB, {summary['points'] / 1e6:.1f} million points",
        f"time           {summary['elapsed_hours']:.2f} h, workers busy for {summary['worker_hours']:.2f} h on "
        f"{len(summary['hosts'])} host{'s' * (len(summary['hosts']) != 1)}",
        f"rate           {'-' if rate is None else f'{rate:.1f} clouds/s'}",
    ]
    for failure in summary["failures"]:
        lines += ["", f"{failure['count']} x {failure['reason']}"]
        lines += [f"  {found['status']:12} {found['error']}" for found in failure["inputs"][:SHOWN]]
        if failure["count"] > SHOWN:
            lines.append(f"  and {failure['count'] - SHOWN} more, see --json")
    lines += ["", "class                share of points"]
    lines += [f"  {name:18} {100 * share:6.2f} %" for name, share in summary["class_shares"].items()]
    lines += ["", "lowest mean confidence"]
    lines += [f"  {found['mean_confidence']:.3f}  {found['name']}" for found in summary["lowest_confidence"]]
    if summary["most_persons"]:
        lines += ["", "most points of persons per cloud"]
        lines += [f"  {found['person_points_per_cloud']:7.1f}  {found['name']}" for found in summary["most_persons"]]
    return "\n".join(lines)


def _read(manifest: str) -> Any:
    if not is_remote(manifest):
        return read_manifest(Path(manifest))
    workspace = Workspace(default_cache(), 0)
    try:
        local = workspace.folder / "manifest.jsonl"
        fetch_file(manifest, local)
        return read_manifest(local)
    finally:
        workspace.close()


def _failure(record: Record) -> dict[str, Any]:
    return {"name": record.name, "input": record.input, "status": record.status, "error": record.error}


def _persons(record: Record) -> float:
    return record.class_counts.get(PERSON, 0) / max(1, record.clouds)


def _span_s(records: Sequence[Record]) -> float:
    """Seconds from the start of the first job to the end of the last one, pauses between runs included."""
    ends = [(datetime.fromisoformat(record.finished).timestamp(), record.seconds) for record in records]
    return max(end for end, _ in ends) - min(end - seconds for end, seconds in ends) if ends else 0.0
