"""What leaves the house: the chosen rows as a data set folder with its card, and as single files."""
