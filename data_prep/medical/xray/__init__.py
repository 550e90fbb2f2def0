"""Chest X-rays (DICOM, PNG, JPEG, TIFF, npz) -> prepared directories of the kind "images"."""
