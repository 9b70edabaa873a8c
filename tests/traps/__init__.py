"""What goes wrong elsewhere, and does not here."""
