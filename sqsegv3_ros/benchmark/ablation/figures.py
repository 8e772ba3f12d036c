# SPDX-License-Identifier: Apache-2.0
"""Plots of the per-pixel statistics, after the paper's figures 2 and 3."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sqsegv3_ros.benchmark.ablation.observation import LOCATIONS, Activation, Coordinates
from sqsegv3_ros.benchmark.tables import import_pyplot, save

FILTERS = 6
"""Filters shown of each network: from the least to the most even one, evenly spaced among all that are ever active."""
_LIMITS_M = {"x": 20.0, "y": 20.0, "z": 2.0}


def draw_means(found: Coordinates, path: Path) -> None:
    """Mean x, y and z by pixel (paper, figure 3, top)."""
    pyplot = import_pyplot()
    figure, axes = pyplot.subplots(3, 1, figsize=(8, 4), layout="constrained", sharex=True)
    for panel, (name, limit), mean in zip(axes, _LIMITS_M.items(), found.mean, strict=True):
        drawn = panel.imshow(mean, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
        panel.set_ylabel(f"row, mean {name}", fontsize=8)
        panel.tick_params(labelsize=7)
        figure.colorbar(drawn, ax=panel, pad=0.01, extend="both").ax.tick_params(labelsize=7)
    axes[0].set_title(f"mean coordinates of {found.scans} scans by pixel, metres", fontsize=9)
    axes[-1].set_xlabel("column (backwards, left, forward in the middle, right, backwards)", fontsize=8)
    save(figure, path)
    pyplot.close(figure)


def draw_locations(found: Coordinates, path: Path) -> None:
    """Distribution of x at nine locations of the image (paper, figure 2, right)."""
    pyplot = import_pyplot()
    figure, axes = pyplot.subplots(LOCATIONS, LOCATIONS, figsize=(8, 4.6), layout="constrained", sharex=True)
    bins = np.linspace(-60, 60, 61)
    for panel, (row, column), samples in zip(axes.ravel(), found.places, found.samples, strict=True):
        x = samples[:, 0]
        panel.hist(np.clip(x, bins[0], bins[-1]), bins=bins, weights=np.full(len(x), 1 / max(1, len(x))))
        said = f"mean {x.mean():.1f} m" if len(x) else "no point"
        panel.set_title(f"row {row}, column {column}: {said}", fontsize=8)
        panel.tick_params(labelsize=7)
        panel.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("x, metres forward (beyond 60 m: counted at the edge)", fontsize=8)
    figure.supylabel("share of the points there", fontsize=8)
    save(figure, path)
    pyplot.close(figure)


def draw_activations(found: Mapping[str, Activation], stage: int, path: Path) -> None:
    """Mean activation of some filters of each network (paper, figure 3, bottom)."""
    pyplot = import_pyplot()
    size = (4.2 * len(found), 0.5 + 0.75 * FILTERS)
    figure, axes = pyplot.subplots(FILTERS, len(found), figsize=size, layout="constrained", squeeze=False)
    for column, (name, one) in zip(axes.T, found.items(), strict=True):
        column[0].set_title(f"{name}: median evenness {np.nanmedian(one.evenness):.2f}", fontsize=9)
        for panel, index in zip(column, chosen_filters(one), strict=False):
            mean = one.mean[index]
            panel.imshow(mean, vmin=0, vmax=np.quantile(mean, 0.99) or 1, aspect="auto", interpolation="nearest")
            panel.set_ylabel(f"{index}\n{one.evenness[index]:.2f}", fontsize=7, rotation=0, ha="right", va="center")
        for panel in column:
            panel.set(xticks=[], yticks=[])
    figure.suptitle(f"mean activation by pixel, first convolution of stage {stage} (filter, evenness)", fontsize=9)
    save(figure, path)
    pyplot.close(figure)


def chosen_filters(one: Activation) -> list[int]:
    """At most `FILTERS` of those that are ever active, evenly spaced from the least to the most even one."""
    active = np.flatnonzero(np.isfinite(one.evenness))
    order = active[np.argsort(one.evenness[active], kind="stable")]
    places = np.unique(np.linspace(0, max(0, len(order) - 1), FILTERS).round().astype(int))
    return [int(index) for index in order[places[: len(order)]]]


def summary(coordinates: Coordinates, activations: Mapping[str, Activation], stage: int) -> dict[str, Any]:
    """The numbers behind the pictures, as plain JSON types."""
    places = [
        {
            "row": row,
            "column": column,
            "points": len(samples),
            "mean_m": [round(float(v), 3) for v in samples.mean(0)] if len(samples) else None,
            "standard_deviation_m": [round(float(v), 3) for v in samples.std(0)] if len(samples) else None,
        }
        for (row, column), samples in zip(coordinates.places, coordinates.samples, strict=True)
    ]
    networks = {
        name: {
            "stage": stage,
            "filters": len(one.evenness),
            "never_active": int(np.isnan(one.evenness).sum()),
            "evenness": [None if np.isnan(v) else round(float(v), 4) for v in one.evenness],
        }
        for name, one in activations.items()
    }
    return {"scans": coordinates.scans, "locations": places, "networks": networks}
