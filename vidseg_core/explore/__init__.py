"""What the notebooks compute and let be explored, a module for each stage."""
