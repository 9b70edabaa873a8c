"""One file per paper: a docstring and one return expression."""
