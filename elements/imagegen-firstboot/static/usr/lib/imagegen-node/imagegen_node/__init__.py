"""The first-boot agent: makes a node ready for the role that its metadata names."""
