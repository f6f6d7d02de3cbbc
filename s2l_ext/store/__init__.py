"""Responses that a frozen model drew ahead of training, on disk: written in shards, read in any order."""
