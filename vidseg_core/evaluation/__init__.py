"""Labelled sets, measures, and what VidSeg is compared with."""
