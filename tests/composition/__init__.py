"""Inside and beside Optax's own transformations."""
