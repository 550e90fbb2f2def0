"""Sequences of 2D keypoints with their 3D poses: Human3.6M, HumanEva, MPI-INF-3DHP."""
