"""Rows: where they come from, what their columns mean, and their token ids and response masks."""
