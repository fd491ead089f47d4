"""SPICE data selection."""
