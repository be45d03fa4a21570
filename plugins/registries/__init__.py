"""The built-in registries."""
