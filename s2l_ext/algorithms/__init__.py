"""The mathematics of the methods: numpy and torch only, one short file per method."""
