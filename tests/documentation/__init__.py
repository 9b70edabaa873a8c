"""What the documentation says, and the code that it prints."""
