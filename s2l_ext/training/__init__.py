"""Everything that subclasses verl and belongs to no single method, and what a run writes down."""
