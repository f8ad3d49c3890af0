"""Scenario generators, a file each; installed as `clframe.scenarios` and found through the registry."""
