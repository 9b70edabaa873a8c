"""The pages on migrating: each call in their tables trains as the call beside it."""
