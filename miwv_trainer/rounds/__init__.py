"""One round: from a pool to a folder with its scores and its selection."""
