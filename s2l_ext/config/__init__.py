"""Reading a block of settings: types, ranges, suggestions, and verl's own settings. Knows of no method."""
