"""Adapters to other libraries, one package each; only that package imports the library."""
