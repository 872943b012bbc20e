"""What people bring, as token ids: preamble, prompts and responses."""
