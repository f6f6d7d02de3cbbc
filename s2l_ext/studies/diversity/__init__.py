"""Which explorer for this learner? pass@k, diversity and gradients of several models' samples (S2L-PO)."""
