"""Models of Flax and Equinox."""
