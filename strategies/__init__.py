"""Continual-learning methods, a file each; installed as `clframe.strategies` and found through the registry."""
