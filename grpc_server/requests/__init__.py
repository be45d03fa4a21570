"""From a request to the engine, and back to the answer."""
