"""The pipeline: prepare, train, register, evaluate, promote."""
