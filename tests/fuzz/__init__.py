"""Hostile and damaged input for everything that is read: ``python -m tests.fuzz --inputs 100000 --seed 0``."""
