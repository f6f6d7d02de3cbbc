"""Runs untrusted Python programs in confined processes. Imports nothing of the package but its errors."""
