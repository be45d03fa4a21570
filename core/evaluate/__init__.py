"""Generate, grade, compare, report."""
