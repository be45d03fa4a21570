"""A request on its way to the engine and back."""
