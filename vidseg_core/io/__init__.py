"""All that touches the disk: clips, masks, runs and their records."""
