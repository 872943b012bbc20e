"""Small scripts in the shapes that people's own have; what was added for this library is marked `# +`."""
