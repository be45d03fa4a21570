"""What there is to registries beside where they store: opening one, addresses, conditions, the environment."""
