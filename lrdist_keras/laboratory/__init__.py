"""Comparisons: arms x sequences x seeds, what is measured, and what it proves."""
