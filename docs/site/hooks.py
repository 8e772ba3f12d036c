# SPDX-License-Identifier: Apache-2.0
"""MkDocs hook: the table of the node's parameters, made from their specifications."""

from __future__ import annotations

from typing import Any

PLACEHOLDER = "<!-- parameters -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the placeholder by the table."""
    return markdown.replace(PLACEHOLDER, parameter_table()) if PLACEHOLDER in markdown else markdown


def parameter_table() -> str:
    """The node's parameters as a Markdown table."""
    from sqsegv3_ros.inference.settings import SPECS

    rows = ["| parameter | default | allowed | |", "|---|---|---|---|"]
    for spec in SPECS:
        ranged = spec.low is not None and spec.high is not None
        allowed = spec.rule or (f"{spec.low:g}..{spec.high:g}" if ranged else "")
        when = " *configure*" if spec.at_configure else ""
        rows.append(f"| `{spec.name}` | `{spec.default!r}` | {allowed} | {spec.description}{when} |")
    return "\n".join(rows)
