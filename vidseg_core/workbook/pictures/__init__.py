"""The notebooks' figures, a module for each stage: pure functions from arrays to matplotlib figures."""
