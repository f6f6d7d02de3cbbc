"""S2L-PO and related post-training methods as one composable layer on verl."""

__version__ = "0.1.0"
