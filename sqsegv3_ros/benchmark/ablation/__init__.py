"""What the paper compares, measured: its variants, their cost beside its tables, and its figures from data here."""
