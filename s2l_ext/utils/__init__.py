"""What has nothing to do with training: files, locks, digests, secrets, processes."""
