"""View models: plain data made from a run's state, with no panel in it, so that tests need none."""
