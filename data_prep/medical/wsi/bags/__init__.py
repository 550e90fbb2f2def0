"""Features and labels -> bags, split by patient."""
