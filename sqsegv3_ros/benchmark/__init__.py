"""Measures what a scan costs, stage by stage, beside the machine's own limits and the official release's way."""
