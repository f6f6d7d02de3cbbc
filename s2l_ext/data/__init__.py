"""Preparing and checking training data."""
