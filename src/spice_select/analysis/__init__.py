"""Numbers about a selection: what was picked from what, and how good it provably is."""
