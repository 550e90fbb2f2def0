"""Raw medical images -> prepared directories: whole-slide images in `wsi`, chest X-rays in `xray`."""
