"""Bridges to other libraries: `clframe.interop.avalanche`."""
