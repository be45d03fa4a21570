"""Generate, grade, report."""
