from __future__ import annotations

import math

import pytest

from sqsegv3_ros.errors import UserError
from sqsegv3_ros.inference.settings import SPECS, Settings
from sqsegv3_ros.ros.diagnostics import ERROR, OK, WARN, Limits, Monitor, Status

LIMITS = Limits(latency_budget_ms=100, late_error_after_s=5, stale_after_s=1)


def statuses(monitor: Monitor, now: float) -> tuple[Status, Status]:
    received, processing = monitor.statuses(now)
    return received, processing


def feed(monitor: Monitor, start: float, seconds: float, latency_ms: float, rate_hz: float = 10) -> float:
    for i in range(int(seconds * rate_hz)):
        now = start + i / rate_hz
        monitor.received(now)
        monitor.labelled(now + latency_ms / 1e3, latency_ms, {"network": latency_ms / 2, "knn": 1.0})
    return start + seconds


def test_clouds_in_time_are_fine_and_rates_and_percentiles_are_right() -> None:
    monitor = Monitor(LIMITS, 0.0)
    now = feed(monitor, 0.0, 20, 50.0)
    received, processing = statuses(monitor, now)
    assert (received.level, processing.level) == (OK, OK)
    assert float(received.values["rate (Hz)"]) == pytest.approx(10, abs=0.3)
    assert processing.values["labelled"] == "200"
    assert processing.values["latency p50/p95/max (ms)"] == "50.0 / 50.0 / 50.0"
    assert processing.values["network p50/p95/max (ms)"] == "25.0 / 25.0 / 25.0"


def test_over_budget_warns_at_once_becomes_an_error_with_time_and_ends_with_the_first_cloud_in_time() -> None:
    monitor = Monitor(LIMITS, 0.0)
    now = feed(monitor, 0.0, 2, 150.0)
    assert statuses(monitor, now)[1].level == WARN
    assert "150 ms" in statuses(monitor, now)[1].message and "100 ms" in statuses(monitor, now)[1].message
    now = feed(monitor, now, 4, 150.0)
    assert statuses(monitor, now)[1].level == ERROR
    now = feed(monitor, now, 0.1, 50.0)
    assert statuses(monitor, now)[1].level == OK


def test_input_that_stops_is_an_error_until_it_comes_back() -> None:
    monitor = Monitor(LIMITS, 0.0)
    assert statuses(monitor, 0.5)[0].level == OK
    assert statuses(monitor, 3.0)[0].level == WARN  # nothing has come yet: perhaps the sensor starts later
    now = feed(monitor, 3.0, 2, 20.0)
    assert statuses(monitor, now + 0.5)[0].level == OK
    stale = statuses(monitor, now + 4)[0]
    assert stale.level == ERROR and "stale" in stale.message and "4.1 s" in stale.message
    assert statuses(monitor, feed(monitor, now + 5, 1, 20.0))[0].level == OK


def test_rejections_are_counted_by_reason_and_worse_when_every_cloud_is_rejected() -> None:
    monitor = Monitor(LIMITS, 0.0)
    for i in range(10):
        monitor.received(i / 10)
        monitor.rejected(i / 10, "missing_field", "points have no field 'intensity'")
    status = statuses(monitor, 1.0)[0]
    assert status.level == ERROR and "intensity" in status.message
    assert status.values["rejected"] == status.values["rejected: missing_field"] == "10"
    now = feed(monitor, 1.0, 1, 20.0)
    assert statuses(monitor, now)[0].level == WARN
    assert statuses(monitor, feed(monitor, now, 12, 20.0))[0].level == OK


def test_failures_and_drops_are_reported() -> None:
    monitor = Monitor(LIMITS, 0.0)
    monitor.received(0.0)
    monitor.failed(0.1, "out of memory")
    monitor.superseded()
    monitor.lost(3)
    received, processing = statuses(monitor, 0.2)
    assert processing.level == ERROR and "out of memory" in processing.message
    assert received.values["superseded by a newer cloud"] == "1"
    assert received.values["lost on the way"] == "3"
    assert statuses(monitor, feed(monitor, 0.3, 0.1, 20.0))[1].level == OK


def test_a_cloud_that_is_never_finished_is_an_error_until_it_is() -> None:
    monitor = Monitor(LIMITS, 0.0)
    now = feed(monitor, 0.0, 1, 20.0)
    monitor.started(now)
    assert statuses(monitor, now + 3)[1].level == OK
    hangs = statuses(monitor, now + 8)[1]
    assert hangs.level == ERROR and "8.0 s" in hangs.message
    monitor.finished()
    assert statuses(monitor, feed(monitor, now + 8, 0.1, 20.0))[1].level == OK


def test_one_bad_cloud_among_good_ones_is_no_error_even_while_it_is_the_last() -> None:
    monitor = Monitor(LIMITS, 0.0)
    now = feed(monitor, 0.0, 2, 20.0)
    monitor.rejected(now, "data_too_short", "data has 3 bytes")
    assert statuses(monitor, now)[0].level == WARN


def test_being_late_does_not_count_from_before_a_break() -> None:
    monitor = Monitor(LIMITS, 0.0)
    now = feed(monitor, 0.0, 1, 150.0) + 60
    monitor.labelled(now, 150.0, {})
    assert statuses(monitor, now)[1].level == WARN


def test_remarks_warn_until_they_are_gone() -> None:
    monitor = Monitor(LIMITS, 0.0)
    now = feed(monitor, 0.0, 1, 20.0)
    monitor.warning(("set intensity_scale",))
    assert statuses(monitor, now)[0].level == WARN
    monitor.warning(())
    assert statuses(monitor, now)[0].level == OK


def settings(**changes: object) -> Settings:
    return Settings(
        {**{spec.name: spec.default for spec in SPECS}, **{k.replace("__", "."): v for k, v in changes.items()}}
    )


def test_parameters_override_the_models_own_settings_only_where_given(small_model: object) -> None:
    from sqsegv3_ros.inference.model_file import read_info

    info = read_info(small_model)  # type: ignore[arg-type]
    assert settings().projection(info) == info.projection and settings().knn(info) == info.knn
    changed = settings(projection__fov_up_deg=0.0, projection__height=32, knn__cutoff_m=0.0, knn__mode="off")
    projection, knn = changed.projection(info), changed.knn(info)
    assert (projection.fov_up_deg, projection.height, projection.width) == (0.0, 32, info.projection.width)
    assert (knn.cutoff_m, knn.mode, knn.k) == (0.0, "off", info.knn.k)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": "fp8"}, "precision"),
        ({"projection__fov_up_deg": 120.0}, "projection.fov_up_deg"),
        ({"knn__sigma": math.inf}, "knn.sigma"),
        ({"model_sha256": "abc"}, "64 hexadecimal"),
        ({"intensity_scale": 0.0}, "intensity_scale"),
        ({"mount__pitch_deg": math.nan}, "mount.pitch_deg must be finite"),
        ({"stale_after_s": math.nan}, "stale_after_s must be finite"),
    ],
)
def test_settings_that_cannot_be_are_refused_without_a_model(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        settings(**changes)


def test_every_parameter_has_a_description_and_a_range_or_a_rule_where_it_is_a_number() -> None:
    for spec in SPECS:
        assert spec.description
        if isinstance(spec.default, (int, float)) and not isinstance(spec.default, bool):
            assert spec.low is not None or spec.rule, spec.name
