"""Human pose: Group Pose finds many people in a picture, ConvFormer lifts their joints to three dimensions."""
