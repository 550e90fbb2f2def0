"""Patches -> features of an encoder; feature files of other programs."""
