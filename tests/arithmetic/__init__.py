"""What the package stands on: trees, random bits, jaxprs, closures."""
