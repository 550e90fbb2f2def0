"""Intracranial EEG: MVPFormer, from generative pretraining to the detection of seizures."""
