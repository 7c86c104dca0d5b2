"""What the notebooks compute, draw and let be explored, a module for each topic."""
