"""Intracranial EEG: recordings of hospitals and data sets, and multivariate series."""

from data_prep.common.extras import need

need("ieeg", "work with recordings", "h5py", "mne", "edfio")
