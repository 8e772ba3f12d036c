# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re

import numpy as np
import pytest
from conftest import ROOT

from sqsegv3_ros.inference.stages import STAGES
from sqsegv3_ros.ros.diagnostics import ERROR, OK, WARN, Limits, NodeDiagnostics, Status

LIMITS = Limits(latency_budget_ms=100, late_error_after_s=5, stale_after_s=1)


def statuses(diagnostics: NodeDiagnostics, now: float) -> tuple[Status, Status]:
    received, processing = diagnostics.statuses(now)
    return received, processing


def feed(diagnostics: NodeDiagnostics, start: float, seconds: float, latency_ms: float, rate_hz: float = 10) -> float:
    for i in range(int(seconds * rate_hz)):
        now = start + i / rate_hz
        diagnostics.received(now)
        diagnostics.labelled(
            now + latency_ms / 1e3, latency_ms, {"network": latency_ms / 2, "knn": 1.0, "sweeps": 40.0}
        )
    return start + seconds


def test_clouds_within_the_budget_are_ok_with_rates_and_percentiles() -> None:
    diagnostics = NodeDiagnostics(LIMITS, 0.0)
    now = feed(diagnostics, 0.0, 20, 50.0)
    received, processing = statuses(diagnostics, now)
    assert (received.level, processing.level) == (OK, OK)
    assert float(received.values["rate_hz"]) == pytest.approx(10, abs=0.3)
    assert processing.values["labelled"] == "200"
    for number in ("p50", "p95", "max"):
        assert processing.values[f"latency_{number}_ms"] == "50.0"
        assert processing.values[f"network_{number}_ms"] == "25.0"


def test_percentiles_are_those_of_numpy() -> None:
    latencies = [float(latency) for latency in np.random.default_rng(0).uniform(1, 200, 57)]
    diagnostics = NodeDiagnostics(LIMITS, 0.0)
    for latency in latencies:
        diagnostics.labelled(1.0, latency, {})
    values = statuses(diagnostics, 1.0)[1].values
    expected = {"p50": np.percentile(latencies, 50), "p95": np.percentile(latencies, 95), "max": max(latencies)}
    for number, value in expected.items():
        assert float(values[f"latency_{number}_ms"]) == pytest.approx(value, abs=0.06)


def test_exceeding_the_budget_warns_then_is_an_error_until_a_cloud_is_within_it() -> None:
    diagnostics = NodeDiagnostics(LIMITS, 0.0)
    now = feed(diagnostics, 0.0, 2, 150.0)
    assert statuses(diagnostics, now)[1].level == WARN
    assert "150 ms" in statuses(diagnostics, now)[1].message and "100 ms" in statuses(diagnostics, now)[1].message
    now = feed(diagnostics, now, 4, 150.0)
    assert statuses(diagnostics, now)[1].level == ERROR
    now = feed(diagnostics, now, 0.1, 50.0)
    assert statuses(diagnostics, now)[1].level == OK


def test_stale_input_is_an_error_until_the_next_cloud() -> None:
    diagnostics = NodeDiagnostics(LIMITS, 0.0)
    assert statuses(diagnostics, 0.5)[0].level == OK
    assert statuses(diagnostics, 3.0)[0].level == WARN  # no cloud yet: the sensor may start later
    now = feed(diagnostics, 3.0, 2, 20.0)
    assert statuses(diagnostics, now + 0.5)[0].level == OK
    stale = statuses(diagnostics, now + 4)[0]
    assert stale.level == ERROR and "stale" in stale.message and "4.1 s" in stale.message
    assert statuses(diagnostics, feed(diagnostics, now + 5, 1, 20.0))[0].level == OK


def test_rejections_are_counted_by_reason_and_an_error_if_every_cloud_is_rejected() -> None:
    diagnostics = NodeDiagnostics(LIMITS, 0.0)
    for i in range(10):
        diagnostics.received(i / 10)
        diagnostics.rejected(i / 10, "missing_field", "points have no field 'intensity'")
    status = statuses(diagnostics, 1.0)[0]
    assert status.level == ERROR and "intensity" in status.message
    assert status.values["rejected"] == status.values["rejected_missing_field"] == "10"
    now = feed(diagnostics, 1.0, 1, 20.0)
    assert statuses(diagnostics, now)[0].level == WARN
    assert statuses(diagnostics, feed(diagnostics, now, 12, 20.0))[0].level == OK


def test_failures_and_drops_are_reported() -> None:
    diagnostics = NodeDiagnostics(LIMITS, 0.0)
    diagnostics.received(0.0)
    diagnostics.failed(0.1, "labelling failed: out of memory")
    diagnostics.dropped_newer_available()
    diagnostics.dropped_in_transport(3)
    received, processing = statuses(diagnostics, 0.2)
    assert processing.level == ERROR and "out of memory" in processing.message
    assert received.values["dropped_newer_available"] == "1"
    assert received.values["dropped_in_transport"] == "3"
    assert statuses(diagnostics, feed(diagnostics, 0.3, 0.1, 20.0))[1].level == OK


def test_a_failed_callback_is_an_error_but_not_a_failed_cloud() -> None:
    diagnostics = NodeDiagnostics(LIMITS, 0.0)
    diagnostics.callback_failed(0.1, "callback on_timer (driver.py:7) failed: ValueError: no")
    processing = statuses(diagnostics, 0.2)[1]
    assert processing.level == ERROR and "on_timer" in processing.message
    assert processing.values["failed"] == "0"


def test_a_cloud_that_is_stuck_is_an_error_until_it_is_finished() -> None:
    diagnostics = NodeDiagnostics(LIMITS, 0.0)
    now = feed(diagnostics, 0.0, 1, 20.0)
    diagnostics.started(now)
    assert statuses(diagnostics, now + 3)[1].level == OK
    stuck = statuses(diagnostics, now + 8)[1]
    assert stuck.level == ERROR and "processing stuck for 8.0 s" in stuck.message
    diagnostics.finished()
    assert statuses(diagnostics, feed(diagnostics, now + 8, 0.1, 20.0))[1].level == OK


def test_one_rejected_cloud_after_good_ones_is_a_warning_for_ten_seconds() -> None:
    diagnostics = NodeDiagnostics(LIMITS, 0.0)
    now = feed(diagnostics, 0.0, 2, 20.0)
    diagnostics.rejected(now, "data_too_short", "data has 3 bytes")
    assert statuses(diagnostics, now)[0].level == WARN
    assert statuses(diagnostics, feed(diagnostics, now, 9.5, 20.0))[0].level == WARN
    assert statuses(diagnostics, feed(diagnostics, now, 11, 20.0))[0].level == OK


def test_lateness_ends_with_a_break_of_the_input() -> None:
    diagnostics = NodeDiagnostics(LIMITS, 0.0)
    now = feed(diagnostics, 0.0, 1, 150.0) + 60
    diagnostics.labelled(now, 150.0, {})
    assert statuses(diagnostics, now)[1].level == WARN


def test_a_missing_publisher_is_shown_with_the_level_of_the_silence() -> None:
    diagnostics = NodeDiagnostics(LIMITS, 0.0)
    diagnostics.set_missing_publisher("no publisher on /points")
    never = statuses(diagnostics, 3.0)[0]
    assert never.level == WARN and "no cloud received" in never.message and "no publisher on /points" in never.message
    now = feed(diagnostics, 3.0, 1, 20.0)
    assert statuses(diagnostics, now)[0].level == OK
    stale = statuses(diagnostics, now + 4)[0]
    assert stale.level == ERROR and "stale" in stale.message and "no publisher on /points" in stale.message
    diagnostics.set_missing_publisher("")
    assert "publisher" not in statuses(diagnostics, now + 4)[0].message


def test_input_warnings_are_shown_until_they_are_cleared() -> None:
    diagnostics = NodeDiagnostics(LIMITS, 0.0)
    now = feed(diagnostics, 0.0, 1, 20.0)
    diagnostics.set_input_warnings(("set intensity_scale",))
    assert statuses(diagnostics, now)[0].level == WARN
    diagnostics.set_input_warnings(())
    assert statuses(diagnostics, now)[0].level == OK


def test_the_pace_is_known_after_half_a_window() -> None:
    diagnostics = NodeDiagnostics(LIMITS, 0.0)
    assert diagnostics.pace(0.0) is None
    now = feed(diagnostics, 0.0, 4, 150.0)  # stages of 75 and 1 ms, and 40 ms of waiting for a pose
    assert diagnostics.pace(now) is None
    now = feed(diagnostics, now, 2, 150.0)
    assert diagnostics.pace(now) == pytest.approx((76.0, 100.0))
    assert diagnostics.pace(now + 20) is None


def test_documentation_lists_the_stages_in_order() -> None:
    text = (ROOT / "docs" / "diagnostics.md").read_text(encoding="utf-8")
    listed = text.split("The stages, in order: ", 1)[1].split(" ([", 1)[0]
    assert tuple(re.findall(r"`(\w+)`", listed)) == STAGES
