"""Images of persons (COCO, CrowdPose, JSON of COCO's form) -> prepared directories of the kind "people"."""
