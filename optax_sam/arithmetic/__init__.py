"""Arithmetic that the engine and the pieces share: trees, noise, means, devices, jaxprs."""
