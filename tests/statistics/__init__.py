"""Simulations whose truth is known: that the statistics of a table keep what they promise."""
