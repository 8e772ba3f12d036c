# SPDX-License-Identifier: Apache-2.0
"""Write the table of the node's parameters, from their specifications, into docs/parameters.md."""

from __future__ import annotations

from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "parameters.md"
MARKER = "<!-- everything below is written by `make parameters` -->\n"


def main() -> None:
    """Replace what follows the marker by the current table."""
    text, marker, _ = PAGE.read_text(encoding="utf-8").partition(MARKER)
    PAGE.write_text(f"{text}{marker}\n{parameter_table()}\n", encoding="utf-8")


def parameter_table() -> str:
    """The node's parameters as a Markdown table."""
    from sqsegv3_ros.inference.settings import SPECS

    rows = ["| parameter | default | allowed | |", "|---|---|---|---|"]
    for spec in SPECS:
        default = "the model's" if spec.of_model else f"`{spec.default!r}`"
        when = " *configure*" if spec.at_configure else " *read-only*" if spec.read_only else ""
        rows.append(f"| `{spec.name}` | {default} | {spec.allowed} | {spec.description}{when} |")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
