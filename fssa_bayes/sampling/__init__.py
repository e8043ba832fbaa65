"""Draws of z given a context: importance weights, grids and chains."""
