"""Figures, tables, claims and verdicts: data frames in, files out."""
