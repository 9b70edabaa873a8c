"""Losses, gradients and gradient norms of single examples."""
