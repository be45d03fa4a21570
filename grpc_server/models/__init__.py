"""The models that a server has loaded, and their routes."""
