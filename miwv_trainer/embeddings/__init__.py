"""Which sample of the pool is most similar to which."""
