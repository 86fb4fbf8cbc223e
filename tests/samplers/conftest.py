"""Being here puts this folder on the path, so that the tests of its subfolders find `fakes` and `test_sampler`."""
