"""What every domain's preparation shares: errors, manifest, locks, resumable map, splits, rejects."""
