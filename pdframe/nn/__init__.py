"""Network blocks that several priors share, in two and three dimensions from one source."""
