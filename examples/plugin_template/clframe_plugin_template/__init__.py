"""Plugins for clframe: a strategy, a scenario, a metric and a tracker."""
