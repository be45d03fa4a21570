"""A run as jobs of Slurm: a script for each stage, chained; and what became of them."""
