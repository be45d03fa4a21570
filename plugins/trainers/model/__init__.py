"""The model that is trained: loading, adapters, forward pass, loss."""
