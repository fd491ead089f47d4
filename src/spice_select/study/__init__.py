"""The whole experiment: select, train, evaluate, for several methods, budgets and seeds, as one resumable plan."""
