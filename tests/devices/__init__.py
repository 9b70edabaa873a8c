"""Batches and parameters that are split over devices and processes."""
