"""Timings of Heptad beside other programs, run by hand; RESULTS.md holds the tables."""
