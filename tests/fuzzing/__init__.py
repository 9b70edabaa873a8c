"""Random calls of the public methods: what is drawn, what must come of it, and literal code for both."""
