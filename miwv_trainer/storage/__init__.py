"""Everything on disk. A file is whole or not there."""
