"""From a configuration to a run, and from a plan to many: building, sweeps on one machine."""
