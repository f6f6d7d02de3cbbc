"""From a recipe to a running job: configuration, plan, cluster and placement, submission."""
