"""A run: its step, its programs, its devices, and what it leaves behind."""
