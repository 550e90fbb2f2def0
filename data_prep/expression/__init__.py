"""Facial expressions: photographs, frames of videos and pixel tables -> aligned faces with labels."""

from data_prep.common.extras import need

need("expression", "work with pictures of faces", "PIL", "cv2")
