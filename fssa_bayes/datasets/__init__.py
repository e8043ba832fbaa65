"""Data sources: one module each, all of them returning `Preferences`."""
