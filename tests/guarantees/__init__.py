"""What every method promises, in every way of calling it."""
