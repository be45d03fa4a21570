"""A run's folder, its stages, and the processes that work on them."""
