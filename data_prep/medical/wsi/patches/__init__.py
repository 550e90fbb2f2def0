"""Slides -> places of their tissue patches."""

from data_prep.common.extras import need

need("medical", "reading of slides and their patches", "cv2", "openslide", "tifffile")
