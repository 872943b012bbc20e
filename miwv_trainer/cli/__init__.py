"""What people type: the command `miwv`."""
