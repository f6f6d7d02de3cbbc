"""Reward functions in verl's custom form: plain files that import no heavy package."""
