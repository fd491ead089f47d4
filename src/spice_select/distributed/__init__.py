"""Work shared out by Ray: the only room that imports it, and only when it is asked for."""
