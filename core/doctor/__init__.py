"""What this machine has, and what of it a run would miss."""
