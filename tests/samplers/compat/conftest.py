"""Being here puts this folder on the path, so that its tests find `laws`."""
