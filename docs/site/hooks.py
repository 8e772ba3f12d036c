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
        default = "the model's" if spec.of_model else f"`{spec.default!r}`"
        when = " *configure*" if spec.at_configure else " *read-only*" if spec.read_only else ""
        rows.append(f"| `{spec.name}` | {default} | {spec.allowed} | {spec.description}{when} |")
    return "\n".join(rows)
