"""All of a training job but its optimisation."""
