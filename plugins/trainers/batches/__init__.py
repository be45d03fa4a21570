"""Token files to micro-batches."""
