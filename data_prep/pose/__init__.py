"""Human pose: keypoints of persons in images, and sequences of poses in space."""
