"""Methods that run a whole assembly several times: over parts of the batch, over random draws."""
