"""Whole-slide images: reading, tissue, patches, features, bags."""

from data_prep.common.extras import need

need("medical", "work with slides and their features", "h5py")
